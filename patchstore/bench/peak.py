"""What a forward pass costs in arithmetic, and the most that the device does of it."""

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from extractor.device import DTYPES, FLOAT32, Way, arithmetic

SIDE = {"cpu": 2048, "cuda": 8192}
SECONDS = 1.0


def flops_a_patch(network: nn.Module, side: int) -> int:
    """Floating point operations of one forward pass, a multiply-add as two, by torch's count."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side, device=next(network.parameters()).device))
    return int(counter.get_total_flops())


def peak_flops(way: Way, device: torch.device) -> float:
    """FLOP/s of a product of two large square matrices in the precision of a way.

    Measured on the device that computes, because data sheets know neither its clock nor the share
    of it that a virtual machine gets: the roof of the roofline model (Williams, Waterman and
    Patterson, CACM 52(4), 2009). Winograd convolutions need fewer operations than are counted.
    """
    side = SIDE[device.type]
    dtype = torch.float32 if way.precision == FLOAT32 else DTYPES[way.precision]
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    with torch.inference_mode(), arithmetic(way, device):
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            begun = time.perf_counter()
            torch.mm(a, a)
            wait_for(device)
            best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
