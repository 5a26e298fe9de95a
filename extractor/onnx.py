"""The same network run by ONNX Runtime: on a CPU without bf16 half as fast again as torch."""

from __future__ import annotations

import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)

_SIZES = torch.export.Dim("patches", min=1, max=4096)


class OnnxNetwork:
    """A network as a session of ONNX Runtime, float32 on the CPU."""

    def __init__(self, network: nn.Module, side: int) -> None:
        """Export a network, which takes seconds; it is left as it is.

        Args:
            network: float32 (N, 3, S, S) to float32 (N, D), in eval mode.
            side: S.

        Raises:
            DeviceError: it cannot be exported, or not be run.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "network.onnx"  # its weights, beside it, may have any size
                export(network, side, file)
                self._session = _open(file)
        except Exception as error:  # exporting runs a network's own Python: anything may come out
            line = " ".join(str(error).split())[:200]
            raise DeviceError(f"ONNX Runtime cannot run this network: {line}") from error

    def __call__(self, patches: Tensor) -> Tensor:
        """Run normalised patches, float32 (N, 3, S, S) channels last, to vectors (N, D)."""
        rows = patches.permute(0, 2, 3, 1).contiguous()
        (vectors,) = self._session.run(None, {"rows": rows.numpy()})
        return torch.from_numpy(vectors)


class _ByRows(nn.Module):
    """A network that takes pixels as they lie in memory, (N, S, S, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.network(rows.permute(0, 3, 1, 2))
        return vectors


def runtime_version() -> str:
    """Name the library with its version: what it can do changes with it."""
    return f"onnxruntime {version('onnxruntime')}"


def export(network: nn.Module, side: int, file: Path) -> None:
    """Write a network as ONNX: `rows`, float32 (N, S, S, 3), to vectors (N, D)."""
    # Two, for a batch of one would become part of the graph.
    rows = torch.zeros(2, side, side, 3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own deprecated parts
        program = torch.onnx.export(
            _ByRows(network).eval(),
            (rows,),
            input_names=["rows"],
            dynamic_shapes=({0: _SIZES},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(file, external_data=True)


def _open(file: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: it warns of every optimisation that it leaves out
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
