"""Memory between forward passes, in processes of their own: what is set stays set."""

import subprocess
import sys
from pathlib import Path

import pytest

_BYTES = 64 * 2**20

_FAULTS = f"""
import resource
from extractor.allocator import keep_freed_memory

def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * {_BYTES}
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory(large_pages={{large}})
print(fill(), fill())
"""


def _faults(*, large: bool) -> tuple[int, int]:
    """Page faults of filling memory, and of filling as much again after it was freed."""
    code = _FAULTS.format(large=large)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, again = map(int, ran.stdout.split())
    return first, again


@pytest.mark.parametrize("large", [False, True])
def test_freed_memory_is_used_again_without_asking_the_kernel(large: bool) -> None:
    first, again = _faults(large=large)
    assert first > 16
    assert again < first / 4


def test_large_pages_take_fewer_requests() -> None:
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not pages.exists() or "[madvise]" not in pages.read_text():
        pytest.skip("this kernel gives large pages to all, or to none")
    assert _faults(large=True)[0] < _faults(large=False)[0] / 8
