"""Runtimes of exported networks: each opens a file and gives what runs it.

On a CPU they beat torch, see docs/benchmarks.md: ONNX Runtime and MNN in float32, OpenVINO in bf16,
which the others have no kernels for. MNN computes kernels of 3x3 by Winograd's algorithm (Lavin and
Gray, Fast Algorithms for Convolutional Neural Networks, 2016), which takes fewer multiplications.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .device import MNN, ONNX

# Pixels as they lie in memory, float32 (N, H, W, 3), to vectors (N, D) or maps (N, C, h, w).
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Session:
    """An opened network.

    Attributes:
        run: computes; any thread may call it. Once it has failed, it is of no use: where memory has
            run out, OpenVINO gives other values from then on, and MNN crashes.
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
    if runtime == MNN:
        return _by_mnn(file, threads)
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
    options.log_severity_level = 4  # nothing: it warns of what it leaves out, and raises errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        (output,) = session.run(None, {"rows": rows})
        return np.asarray(output)

    return Session(run)


# The converter itself: its wrapper `MNN.tools` installs a package and tells its maker of each use.
_CONVERT = """
import sys, _tools
file, made = sys.argv[1:]
_tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", file, "--MNNModel", made])
"""


_RESIZE_STATUS = 3  # of MNN's `SessionInfoCode`; 0: ready


def _by_mnn(file: Path, threads: int) -> Session:
    made = _for_mnn(file)
    with _no_standard_output():  # where it tells what the processor can do, and what is no network
        mnn = import_module("MNN")
        interpreter = mnn.Interpreter(str(made))
        session = interpreter.createSession({"backend": "CPU", "numThread": threads})
    given, turn = interpreter.getSessionInput(session), threading.Lock()

    def tensor(values: NDArray[np.float32]) -> Any:
        layout = mnn.Tensor_DimensionType_Caffe  # in the order of the shape, whatever it means
        return mnn.Tensor(values.shape, mnn.Halide_Type_Float, values, layout)

    def run(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        with turn:
            if given.getShape() != rows.shape:
                interpreter.resizeTensor(given, rows.shape)
                interpreter.resizeSession(session)  # which says True whatever comes of it
            if interpreter.getSessionInfo(session, _RESIZE_STATUS) != 0:
                raise MemoryError
            copied = given.copyFrom(tensor(rows))
            code = interpreter.runSession(session)
            computed = interpreter.getSessionOutput(session)
            output = tensor(np.empty(computed.getShape(), np.float32))
            if code or not copied or not computed.copyToHostTensor(output):
                raise RuntimeError(f"error {code}")
            return np.array(output.getNumpyData())

    return Session(run)


def _for_mnn(file: Path) -> Path:
    """The network in MNN's own format, made beside the export where it is not there yet.

    In a process of its own: of some layers that it does not know the converter dies.
    """
    made = file.with_name(f"{file.stem}-{version('mnn')}.mnn")
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(
        dir=file.parent
    ) as beside:  # what a dead converter leaves goes
        whole = Path(beside) / made.name
        converter = subprocess.run(
            [sys.executable, "-P", "-c", _CONVERT, file, whole],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if converter.returncode or not whole.exists():
            said = converter.stdout.strip().rpartition("\n")[2]
            raise ValueError(f"its converter ended with {converter.returncode}: {said}")
        whole.replace(made)
    return made


@contextmanager
def _no_standard_output() -> Iterator[None]:
    """Let nothing out that is printed in C: standard output is for what a command was asked for."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    flush = ctypes.CDLL(None).fflush  # what waits in C's own buffer
    flush(None)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


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
