"""The same network run by ONNX Runtime: on a CPU without bf16 half as fast again as torch."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import DeviceError
from .network import DenseNetwork, main_part
from .spec import FeatureSpec

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)

_SIZES = torch.export.Dim("patches", min=1, max=4096)
_ANY = torch.export.Dim.DYNAMIC
_FILE = "network.onnx"  # in a folder of its own, for its weights lie beside it: ONNX ends at 2 GB
_KEPT = 8  # exports, each as large as its network: 45 MB for a ResNet-18
_UNEVEN = 5  # pixels by which a rectangle that a dense network is tried on is no square
_TOLERANCE = 1e-4  # of the largest value; rounding alone gives 1e-6


class OnnxNetwork:
    """A network as a session of ONNX Runtime, float32 on the CPU.

    Of a dense network it is the part before the pooling, which is run on rectangles of any size.
    """

    def __init__(self, network: nn.Module, side: int, export_folder: Path | None = None) -> None:
        """Export a network, which takes seconds, unless that was done before.

        A session is only used when it gives what the network gives of noise.

        Args:
            network: float32 (N, 3, S, S) to float32 (N, D), in eval mode. Left as it is.
            side: S; of a dense network, of what it is tried on.
            export_folder: where this network's export is kept, see `export_folder`; None: nowhere.

        Raises:
            DeviceError: it cannot be exported, or not be run.
        """
        try:
            self._session = _kept(network, side, export_folder) or _exported(
                network, side, export_folder
            )
        except Exception as error:  # exporting runs a network's own Python: anything may come out
            line = " ".join(str(error).split())[:200]
            raise DeviceError(f"ONNX Runtime cannot run this network: {line}") from error

    def __call__(self, patches: Tensor) -> Tensor:
        """Run normalised patches, float32 (N, 3, S, S) channels last, to vectors (N, D).

        A dense network's rectangles (N, 3, H, W) to feature maps (N, C, h, w).
        """
        return _run(self._session, patches)


class _ByRows(nn.Module):
    """What is exported of a network; it takes pixels as they lie in memory, (N, H, W, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return main_part(self.network)(rows.permute(0, 3, 1, 2))


def runtime_version() -> str:
    """Name the library with its version: what it can do changes with it."""
    return f"onnxruntime {version('onnxruntime')}"


def export(network: nn.Module, side: int, file: Path) -> None:
    """Write a network as ONNX: `rows`, float32 (N, S, S, 3), to vectors (N, D).

    Of a dense network, what `OnnxNetwork` runs: rows (N, H, W, 3) to maps (N, C, h, w).
    """
    dense = isinstance(network, DenseNetwork)
    # Two, for a batch of one would become part of the graph; so would a width that is the height.
    rows = torch.zeros(2, side, side + _UNEVEN if dense else side, 3)
    sizes = {0: _SIZES, 1: _ANY, 2: _ANY} if dense else {0: _SIZES}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own deprecated parts
        program = torch.onnx.export(
            _ByRows(network).eval(),
            (rows,),
            input_names=["rows"],
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(file, external_data=True)


def export_folder(folder: Path, spec: FeatureSpec) -> Path:
    """Name the folder in which the export of a spec's network is kept, by all that decides it."""
    libraries = [
        f"{name} {version(name)}" for name in ("torch", "torchvision", "onnx", "onnxruntime")
    ]
    return folder / sha256(" ".join([spec.digest, *libraries]).encode()).hexdigest()[:32]


def is_exported(export_folder: Path | None) -> bool:
    """Tell whether a network need not be exported again."""
    return export_folder is not None and (export_folder / _FILE).is_file()


def _kept(
    network: nn.Module, side: int, export_folder: Path | None
) -> onnxruntime.InferenceSession | None:
    """The session of an earlier export, in working order."""
    if export_folder is None or not is_exported(export_folder):
        return None
    try:
        session = _open(export_folder / _FILE)
        _check_on_noise(session, network, side)
        os.utime(export_folder)  # `_forget` deletes what was not used for longest
    except Exception as error:  # a file that was cut off makes any trouble
        log.warning("exporting again: %s (%s)", export_folder, " ".join(str(error).split())[:200])
        return None
    return session


def _exported(
    network: nn.Module, side: int, export_folder: Path | None
) -> onnxruntime.InferenceSession:
    """The session of a fresh export, which is kept where that is possible."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        export(network, side, Path(made) / _FILE)
        session = _open(Path(made) / _FILE)
        _check_on_noise(session, network, side)
        if export_folder is not None:
            _keep(Path(made), export_folder)
    return session


def _keep(made: Path, export_folder: Path) -> None:
    """Copy an export to where it is kept, so that nobody sees half of it."""
    try:
        export_folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=export_folder.parent) as beside:
            whole = shutil.copytree(made, Path(beside) / "whole")
            os.utime(whole)  # a copy is as old as what was copied
            shutil.rmtree(export_folder, ignore_errors=True)
            whole.rename(export_folder)
        _forget(export_folder.parent)
    except OSError as error:  # full, not ours, or another process was quicker
        log.info("the exported network is not kept in %s: %s", export_folder, error.strerror)


def _forget(folder: Path) -> None:
    """Delete all but the exports that were used last."""
    with suppress(OSError):  # another process forgets, too
        by_use = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in by_use[_KEPT:]:
            shutil.rmtree(old)


def _check_on_noise(session: onnxruntime.InferenceSession, network: nn.Module, side: int) -> None:
    """Raise ValueError unless a session gives what its network gives."""
    generator = torch.Generator().manual_seed(0)
    for shape in _tried_shapes(network, side):
        noise = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            expected, found = main_part(network)(noise), _run(session, noise)
        if expected.shape != found.shape:
            raise ValueError(f"its maps are of {tuple(found.shape)}, not {tuple(expected.shape)}")
        difference = (expected - found).abs().max() / expected.abs().max()
        if not difference <= _TOLERANCE:  # NaN is no agreement either
            raise ValueError(f"its vectors differ by {difference:.0e}")


def _tried_shapes(network: nn.Module, side: int) -> list[tuple[int, int, int, int]]:
    if not isinstance(network, DenseNetwork):
        return [(2, 3, side, side)]
    # Runtimes differ in what a pooling or a stride does with the pixels that are left at the end.
    return [(1, 3, side + more, side + _UNEVEN - more) for more in range(4)]


def _run(session: onnxruntime.InferenceSession, patches: Tensor) -> Tensor:
    rows = patches.permute(0, 2, 3, 1).contiguous()
    (vectors,) = session.run(None, {"rows": rows.numpy()})
    return torch.from_numpy(vectors)


def _open(file: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # It would keep a plan of its memory for every size of rectangle, and half as much memory again.
    options.enable_mem_pattern = False
    # A thread that waits would take its core from whatever decodes, writes or answers beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: it warns of every optimisation that it leaves out
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
