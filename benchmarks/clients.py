"""Clients as processes of their own, which begin at the same moment."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

PATIENCE_S = 600.0

T = TypeVar("T")

_barrier: Barrier


def at_once(client: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """What each client returns: one for each of these arguments, in a process of its own.

    A process takes seconds to import what it needs, in which the others are not to be measured:
    they `meet` before they are.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(arguments))
    with context.Pool(len(arguments), _join, (barrier,)) as pool:
        return pool.starmap(client, arguments, chunksize=1)


def meet() -> None:
    """Waits until all clients have come this far. Raises BrokenBarrierError."""
    _barrier.wait(PATIENCE_S)


def _join(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
