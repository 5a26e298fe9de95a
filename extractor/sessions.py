"""Runtimes of exported networks: each opens a file and gives what runs it.

On a CPU both beat torch, see docs/benchmarks.md: ONNX Runtime in float32, OpenVINO in bf16, which
ONNX Runtime has no kernels for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .device import ONNX

# Pixels as they lie in memory, float32 (N, H, W, 3), to vectors (N, D) or maps (N, C, h, w).
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Session:
    """An opened network.

    Attributes:
        run: computes; any thread may call it.
        streams: how many threads it takes to keep all cores at work, each calling `run`.
    """

    run: Run
    streams: int = 1


def open_session(
    runtime: str, file: Path, *, threads: int, most_streams: int | None = None
) -> Session:
    """Open an exported network, on the CPU, in the precision that `device.EXPORTED` has for it.

    Args:
        runtime: one of `device.EXPORTED`.
        file: what `onnx.export` wrote.
        threads: to compute in.
        most_streams: for each takes memory for a batch; None: as many as are fast.
    """
    if runtime == ONNX:
        return _by_onnx(file, threads)
    return _by_openvino(file, threads, most_streams)


def runtime_version(runtime: str) -> str:
    """Name the library with its version: what it can do changes with it."""
    return f"{runtime} {version(runtime)}"


def _by_onnx(file: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # It would keep a plan of its memory for every size of rectangle, and half as much memory again.
    options.enable_mem_pattern = False
    # A thread that waits would take its core from whatever decodes, writes or answers beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: it warns of every optimisation that it leaves out
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        (output,) = session.run(None, {"rows": rows})
        return np.asarray(output)

    return Session(run)


def load_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry: importing it tells its maker so, over the network."""
    # Where the package is missing, it takes a stub that it brings along.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return cast(ModuleType, openvino)


def _by_openvino(file: Path, threads: int, most_streams: int | None) -> Session:
    options: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": threads,
        # Batches side by side, each in as few threads as OpenVINO sees fit: threads that share a
        # batch wait for one another after each layer, and all for one whose core decodes a picture.
        "PERFORMANCE_HINT": "THROUGHPUT",
        # Two runs on one machine would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    if most_streams is not None:
        options["NUM_STREAMS"] = min(most_streams, threads)
    model = load_openvino().Core().compile_model(file, "CPU", options)
    of_thread = threading.local()

    def run(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if not hasattr(of_thread, "request"):
            of_thread.request = model.create_infer_request()
        return np.asarray(of_thread.request.infer([rows], share_inputs=True)[0])

    return Session(run, int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
