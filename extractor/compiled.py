"""The same network compiled by torch's inductor, for batches of one size."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor, nn

from .device import COMPILED


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a network, in eval mode, at its first call under `torch.inference_mode`.

    Needs a C++ compiler (a GPU: a C compiler); without one the first call raises, as it does for a
    network that cannot be compiled as a whole. torch keeps what was compiled before, by default
    below the system's temporary folder; `TORCHINDUCTOR_CACHE_DIR` names another.
    """
    run: Callable[[Tensor], Tensor] = torch.compile(  # type: ignore[call-overload]
        network,
        fullgraph=True,
        dynamic=False,
        isolate_recompiles=True,  # networks of one class count their sizes apart
        options={
            "freezing": True,  # weights are constants: laid out for the kernels once
            # The kernels of a batch are launched as one; means nothing on a CPU.
            "triton.cudagraphs": True,
        },
    )
    return run


def filled_up(batch: Tensor, size: int) -> Tensor:
    """Lengthen a batch to (size, C, H, W), for one of another size would be compiled anew."""
    if len(batch) >= size:
        return batch
    full = batch.new_zeros(size, *batch.shape[1:]).contiguous(memory_format=torch.channels_last)
    full[: len(batch)] = batch
    return full


def compiler_version() -> str:
    """Name the compiler with its version: what it can do changes with it."""
    return f"{COMPILED} {version('torch')}"
