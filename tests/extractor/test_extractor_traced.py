"""A network in one call is the same function, or it is the network itself."""

import logging
import sys
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractor import traced as module
from extractor.backbone import resolve
from extractor.network import noise
from extractor.spec import Recipe
from extractor.traced import in_one_call

PATCHES = noise(5, 64)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "mobilenet_v3_small"])
@pytest.mark.filterwarnings("error")
def test_batches_of_every_size_give_the_same_vectors_in_one_call(name: str) -> None:
    network = resolve(Recipe(name, "random:0", patch_size=64, stride=32)).backbone.folded(64)
    ready = in_one_call(network, PATCHES)
    assert isinstance(ready, torch.jit.ScriptModule)
    with torch.inference_mode():
        for size in range(1, len(PATCHES) + 1):
            batch = PATCHES[:size]
            torch.testing.assert_close(ready(batch), network(batch), rtol=1e-5, atol=1e-6)


class Steps(nn.Module):
    """Leaves ones in what it is given, at its last step."""

    def forward(self, patches: Tensor) -> Tensor:
        return patches.mul_(2.0).add_(1.0).fill_(1.0)


def test_all_steps_are_made_while_another_thread_keeps_pythons_lock() -> None:
    ready = in_one_call(Steps().eval(), torch.zeros(5, 3))
    given = np.zeros((2, 3), np.float32)
    begun = threading.Event()

    def compute() -> None:
        with torch.inference_mode():
            patches = torch.from_numpy(given)
            begun.set()
            ready(patches)

    thread = threading.Thread(target=compute)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600.0)  # who has the lock need not give it away
    try:
        thread.start()
        begun.wait()
        looked = 0
        while given[-1, -1] != 1.0 and looked < 10_000_000:
            looked += 1
        done = given[-1, -1]
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert done == 1.0


class Counting(nn.Module):
    """Adds the size of a batch, which is seen once."""

    def forward(self, patches: Tensor) -> Tensor:
        return patches.mean((2, 3)) + float(len(patches))


class Refusing(nn.Module):
    """Cannot be traced: Python reads a value."""

    def forward(self, patches: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("reads its values")
        return patches.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Counting(), "its vectors differ by"), (Refusing(), "reads its values")],
)
def test_what_cannot_be_one_call_stays_the_network_that_it_is(
    network: nn.Module, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert in_one_call(network.eval(), PATCHES) is network
    assert reason in caplog.text


def test_a_torch_without_torchscript_computes_step_by_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(module.torch.jit, "trace")
    network = Refusing().eval()
    with caplog.at_level(logging.INFO):
        assert in_one_call(network, PATCHES) is network
    assert "step by step" in caplog.text
