"""Which device computes, and which precisions it runs natively."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from .errors import DeviceError
from .spec import Mode

FLOAT32 = "float32"
TORCH, COMPILED = "torch", "torch.compile"
ONNX, MNN, OPENVINO = "onnxruntime", "mnn", "openvino"
# Runtimes of networks that were exported, on the CPU, and in which precision each is the fastest.
EXPORTED = {ONNX: FLOAT32, MNN: FLOAT32, OPENVINO: "bf16"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# torch on a CPU; OpenVINO and ONNX Runtime; C++; ours of another runtime's; cuDNN and cuBLAS.
_WITHOUT_MEMORY = (
    "can't allocate memory",
    "failed to allocate",
    "bad_alloc",
    "out of memory",
    "status_alloc_failed",
)
_CORES = torch.get_num_threads()
TEAMS = min(2, _CORES)  # of threads: as many passes side by side share the cores of a CPU


@dataclass(frozen=True)
class Way:
    """How a device computes vectors: what it must not change is what they are."""

    precision: str = FLOAT32
    runtime: str = TORCH

    def __str__(self) -> str:
        return self.precision if self.runtime == TORCH else f"{self.precision} by {self.runtime}"

    @classmethod
    def parse(cls, name: str) -> Way:
        """The way of a name that `str` gave."""
        precision, _, runtime = name.partition(" by ")
        return cls(precision, runtime or TORCH)


def choose_device(name: str = "auto") -> torch.device:
    """Find the device of a name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: when it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device is {name!r}; give auto, cpu, cuda or cuda:N (PATCHSTORE_DEVICE)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} is not there, torch sees {torch.cuda.device_count()} CUDA devices; "
            "give auto or cpu, or see whether `nvidia-smi` lists it"
        )
    return device


def device_kind(device: torch.device) -> str:
    """Name what precision depends on: ``cpu``, ``cpu avx512_bf16``, ``cuda NVIDIA H200``."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    instructions = _bf16_instructions()
    return f"cpu {instructions}" if instructions else "cpu"


def candidates(device: torch.device) -> tuple[str, ...]:
    """List the low precisions that a device computes natively; emulated ones are slower."""
    if device.type != "cuda":
        return ("bf16",) if _bf16_instructions() else ()
    capability = torch.cuda.get_device_capability(device)
    return ("fp16", "bf16") if capability >= (8, 0) else ("fp16",) if capability >= (7, 0) else ()


def exported_ways(device: torch.device) -> list[Way]:
    """List the ways of the runtimes of exported networks that a device has instructions for."""
    if device.type != "cpu":
        return []
    native = (FLOAT32, *candidates(device))
    return [
        Way(each, runtime)
        for runtime, each in EXPORTED.items()
        if each in native and _is_installed(runtime)
    ]


def use_cores(count: int) -> None:
    """Let the passes of this thread use so many cores of the CPU from now on."""
    # Asked for first: a thread takes over the others' number when it first needs one. And not set
    # in vain: that makes a new pool of threads, which spin for a while.
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)  # of this thread, and of new ones until somebody else does


def share_cores(teams: int) -> None:
    """Let the passes of this thread use one of so many equal shares of the cores.

    The threads of one pass wait for each other after every layer: whatever else takes one of their
    cores for a moment stops them all. Passes side by side do not stop each other.
    """
    use_cores(max(1, _CORES // teams))


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether what failed may work with less at once: no two libraries say so alike."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in _WITHOUT_MEMORY
    )


def utilization(device: torch.device) -> float | None:
    """Read the share of the last moment in which a CUDA device was running a kernel, 0 to 1.

    Returns:
        None where that is not known: on a CPU, and without the package nvidia-ml-py.
    """
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # each driver has its own way of not telling
        return None


def check_device_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not run natively.

    Raises:
        DeviceError: naming those it does.
    """
    known = (FLOAT32, *candidates(device))
    if precision not in known:
        raise DeviceError(
            f"precision is {precision!r}; {device_kind(device)} runs {', '.join(known)}: give one "
            "of these"
        )


def check_runtime(way: Way, device: torch.device, mode: Mode) -> None:
    """Refuse what a runtime does not run: networks are compiled for batches of one size only.

    Raises:
        DeviceError: saying what it does run.
    """
    if way.runtime == COMPILED and mode == "dense":
        raise DeviceError(f"{way.runtime} runs the mode exact only")
    precision = EXPORTED.get(way.runtime, way.precision)
    if precision != way.precision or (way.runtime in EXPORTED and device.type != "cpu"):
        raise DeviceError(f"{way.runtime} runs on the CPU in {precision} only")


def arithmetic(way: Way, device: torch.device) -> AbstractContextManager[object]:
    """Give the context in which torch computes in this way."""
    if way.precision != FLOAT32:
        return torch.autocast(device.type, DTYPES[way.precision])
    if device.type == "cuda":
        # By default cuDNN rounds float32 convolutions to TF32: 1e-3 off.
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()


@cache
def _is_installed(runtime: str) -> bool:
    try:
        version(runtime)
    except PackageNotFoundError:
        return False
    return True


def _bf16_instructions() -> str | None:
    if not torch._C._has_mkldnn:
        return None
    has = torch.cpu.get_capabilities()
    # x86 names its extension after AVX-512, ARM after the format.
    return next((name for name in ("avx512_bf16", "bf16") if has.get(name)), None)
