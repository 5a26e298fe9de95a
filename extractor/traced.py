"""A network as one call: torch's operators, without Python between them.

A pass of a ResNet-18 is some fifty steps, and after each of them Python's lock is waited for:
beside threads that run Python, as those of a service do, that is a tenth of a pass. TorchScript
runs all steps in one call, which lets go of the lock once. It is deprecated: what torch has instead
needs a compiler where it runs (AOTInductor), or does not keep weights in oneDNN's order
(`.packed`). Without it a pass is what it was.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from .errors import one_line
from .network import agree, difference

log = logging.getLogger(__name__)


def in_one_call(network: nn.Module, patches: Tensor) -> nn.Module:
    """The same function, in one call.

    Args:
        network: in eval mode. Left as it is; its parameters are shared.
        patches: what is tried, float32 (N, 3, H, W): all of them, and the first one alone, for
            what Python does with the size of a batch is seen once.

    Returns:
        The network itself where its steps cannot be recorded, or give other values.
    """
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # that it is deprecated, and what it sees once
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                network, patches[:2], check_trace=False
            )
            frozen: nn.Module = torch.jit.freeze(traced, optimize_numerics=False)
            for tried in (patches, patches[:1]):
                expected, found = network(tried), frozen(tried)
                if not agree(expected, found):
                    raise ValueError(f"its vectors differ by {difference(expected, found):.0e}")
    except Exception as error:  # tracing runs a network's own Python: anything may come out
        log.info("passes run step by step: %s", one_line(error))
        return network
    return frozen
