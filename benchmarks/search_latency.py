"""How long questions take, asked by one client or by several at once."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from .clients import at_once, meet
from .search_ways import Answer, Prepare, Question, Way

WARM_UP = 50
STRETCH = 50  # questions that all clients ask one way before they turn to the next


def latencies(
    ways: Mapping[str, Way], questions: Sequence[Question], clients: int
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each way, all clients together, ascending questions.

    Each client is a process with connections of its own and asks all of the questions, each of them
    each way. The ways take turns, stretch by stretch, so that what else the machine does meets all
    of them; the clients turn at the same moment, so that no way is slowed down by another.
    """
    answers = at_once(_client, [(ways, questions, number) for number in range(clients)])
    return {name: np.concatenate([answer[name] for answer in answers]) for name in ways}


def _client(
    ways: Mapping[str, Way], questions: Sequence[Question], number: int
) -> dict[str, NDArray[np.float64]]:
    # Clients do not ask the same thing at the same time.
    own = [questions[i] for i in np.random.default_rng(number).permutation(len(questions))]
    found: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(way.open()) for name, way in ways.items()}
        for prepare in opened.values():
            timed(prepare, own[:WARM_UP])
        order = deque(opened.items())
        for start in range(0, len(own), STRETCH):
            for name, prepare in order:
                meet()
                found[name] += timed(prepare, own[start : start + STRETCH])[1]
            order.rotate(-1)  # whoever is first reads from the disk what the others find in memory
    return {name: np.array(values) for name, values in found.items()}


def timed(prepare: Prepare, questions: Sequence[Question]) -> tuple[list[Answer], list[float]]:
    """The answer to each question, and how many milliseconds it took once it was prepared."""
    answers, milliseconds = [], []
    for question in questions:
        ask = prepare(question)
        begun = time.perf_counter()
        answers.append(ask())
        milliseconds.append(1000 * (time.perf_counter() - begun))
    return answers, milliseconds
