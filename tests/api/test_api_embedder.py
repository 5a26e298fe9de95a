"""Forward passes are shared by whoever asks at the same time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from db.metric import METRICS
from db.specs import StoredSpec
from extractor.arrays import Region
from extractor.errors import DegenerateFeatures, WeightsError
from patchstore.api import embedder as module
from patchstore.api.embedder import BatchingEmbedder
from patchstore.api.problems import Problem

RECIPE = {
    "backbone": "b",
    "weights": "w",
    "weights_sha256": "",
    "dim": 1,
    "mean": (0, 0, 0),
    "std": (1, 1, 1),
}


def spec(name: str = "one") -> StoredSpec:
    recipe = {**RECIPE, "layer": name}
    return StoredSpec(hash(name), name, name, recipe, 1, METRICS["l2"], name)


class Network:
    """Gives each region its first pixel as its vector; waits to be let go."""

    def __init__(self) -> None:
        self.teams = 1
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.both = threading.Barrier(2)

    def embed_many(
        self, regions: list[Region], *, teams: int
    ) -> list[np.ndarray | DegenerateFeatures]:
        self.begun.set()
        assert self.go.wait(30)
        if teams > 1:
            self.both.wait(30)  # or it breaks: each must have the other beside it
        values = [int(region.picture[0, 0, 0]) for region in regions]
        self.batches.append(values)
        return [
            np.array([value], np.float32) if value else DegenerateFeatures("nothing there")
            for value in values
        ]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()

    def load(_recipe: object, weights: str, _batch_size: int, *, small_passes: bool) -> Network:
        assert small_passes
        if weights == "missing":
            raise WeightsError("no such file")
        return network

    monkeypatch.setattr(module, "load_extractor", load)
    return network


@pytest.fixture
def embedder(network: Network) -> Iterator[BatchingEmbedder]:
    made = BatchingEmbedder(batch_size=4, max_waiting=8, timeout_s=30)
    yield made
    network.go.set()
    made.close()


def region(value: int) -> Region:
    return Region.whole(np.full((8, 8, 3), value, np.uint8))


def ask_at_once(
    embedder: BatchingEmbedder, network: Network, questions: list, wait_until: Callable
) -> list:
    """Asks the first, and the others while the network is busy with it; then lets it go."""
    with ThreadPoolExecutor(len(questions)) as pool:
        futures = [pool.submit(embedder, *questions[0])]
        assert network.begun.wait(30)
        waiting = embedder.waiting
        for question in questions[1:]:
            futures.append(pool.submit(embedder, *question))
            waiting += len(question[1])
            wait_until(lambda due=waiting: embedder.waiting == due)
        network.go.set()
    return [future.exception() or future.result().ravel().tolist() for future in futures]


def test_questions_that_come_in_meanwhile_share_a_pass(embedder, network, wait_until) -> None:
    got = ask_at_once(embedder, network, [(spec(), [region(n)]) for n in range(1, 6)], wait_until)
    assert got == [[1], [2], [3], [4], [5]]
    assert network.batches == [[1], [2, 3, 4, 5]]


def test_a_pass_holds_no_more_than_a_batch(embedder, network, wait_until) -> None:
    questions = [(spec(), [region(n), region(n)]) for n in range(1, 5)]
    assert ask_at_once(embedder, network, questions, wait_until) == [[n, n] for n in range(1, 5)]
    assert network.batches == [[1, 1], [2, 2, 3, 3], [4, 4]]


def test_vectors_of_two_specs_never_share_a_pass(embedder, network, wait_until) -> None:
    questions = [(spec(name), [region(n)]) for n, name in enumerate(["a", "b", "b", "a"], 1)]
    assert ask_at_once(embedder, network, questions, wait_until) == [[1], [2], [3], [4]]
    assert network.batches == [[1], [2, 3], [4]]


def test_many_questions_are_shared_by_passes_side_by_side(embedder, network, wait_until) -> None:
    network.teams = 2
    questions = [(spec(), [region(n)]) for n in range(1, 7)]
    assert ask_at_once(embedder, network, questions, wait_until) == [[n] for n in range(1, 7)]
    assert network.batches[0] == [1]  # while it is computed the others wait
    assert sorted(network.batches[1:]) == [[2, 3, 4], [5, 6]]


def test_what_makes_no_two_passes_has_all_cores(embedder, network, wait_until) -> None:
    network.teams = 2
    questions = [(spec(), [region(n)] * count) for n, count in enumerate([1, 6, 1], 1)]
    ask_at_once(embedder, network, questions, wait_until)
    assert network.batches == [[1], [2] * 6, [3]]
    assert not network.both.broken


class Gates:
    """Loads networks whose every pass waits until the test opens its gate."""

    def __init__(self) -> None:
        self.open = False
        self.begun: list[int] = []  # teams of each pass, in order
        self.gates: list[threading.Event] = []

    def load(self, _recipe: object, weights: str, *_: object, **__: object) -> "Gates":
        self.teams = 1 if weights == "alone" else 2
        return self

    def embed_many(self, regions: list[Region], *, teams: int) -> list[np.ndarray]:
        gate = threading.Event()
        self.gates.append(gate)
        self.begun.append(teams)
        assert self.open or gate.wait(30)
        return [np.zeros(1, np.float32) for _ in regions]


def test_a_pass_that_needs_all_cores_never_begins_beside_another(monkeypatch, wait_until) -> None:
    gates = Gates()
    monkeypatch.setattr(module, "load_extractor", gates.load)
    embedder = BatchingEmbedder(batch_size=4, max_waiting=20, timeout_s=30)
    gates.open = True
    for name in ("alone", "sharing"):
        embedder(spec(name), [region(1)])  # from now on it is known how many may share
    gates.open, gates.begun, gates.gates = False, [], []
    with ThreadPoolExecutor(9) as pool:

        def ask(name: str, count: int) -> None:
            due = embedder.waiting + count
            for _ in range(count):
                pool.submit(embedder, spec(name), [region(1)])
            wait_until(lambda: embedder.waiting == due)

        ask("sharing", 1)
        wait_until(lambda: len(gates.begun) == 1)
        ask("sharing", 6)
        gates.gates[0].set()
        wait_until(lambda: len(gates.begun) == 3 and embedder.waiting == 6)
        ask("alone", 2)
        gates.gates[1].set()
        wait_until(lambda: embedder.waiting < 8)  # that pass has answered
        time.sleep(0.05)  # for what must not begin now
        assert gates.begun == [1, 2, 2]
        gates.gates[2].set()
        wait_until(lambda: len(gates.begun) == 4)
        assert gates.begun[3] == 1
        gates.gates[3].set()
    embedder.close()


def test_one_bad_region_spoils_its_own_question_only(embedder, network, wait_until) -> None:
    good, bad, other = ask_at_once(
        embedder, network, [(spec(), [region(n)]) for n in (1, 0, 2)], wait_until
    )
    assert (good, other) == ([1], [2])
    assert isinstance(bad, DegenerateFeatures)


def test_a_network_that_is_missing_is_said_to_everybody_and_is_no_end(embedder, network) -> None:
    network.go.set()
    for _ in range(2):
        with pytest.raises(WeightsError, match="no such file"):
            embedder(spec("missing"), [region(1)])
    assert embedder(spec(), [region(1)]).tolist() == [[1]]


def test_weights_that_were_not_found_are_not_looked_for_at_every_question(
    embedder, network, monkeypatch
) -> None:
    looked = []

    def load(*arguments: object, **options: object) -> None:
        looked.append(arguments)
        raise WeightsError("no such file")

    monkeypatch.setattr(module, "load_extractor", load)
    for _ in range(3):
        with pytest.raises(WeightsError, match="no such file"):
            embedder(spec("missing"), [region(1)])
    assert len(looked) == 1


def test_more_than_may_wait_are_refused_at_once(embedder, network) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embedder, spec(), [region(1)] * 8)
        assert network.begun.wait(30)
        with pytest.raises(Problem, match="8 patches are waiting"):
            embedder(spec(), [region(2)])
        network.go.set()
        assert first.result().shape == (8, 1)
    assert embedder.waiting == 0


def test_who_waits_too_long_is_told(network) -> None:
    embedder = BatchingEmbedder(batch_size=4, max_waiting=8, timeout_s=0.05)
    with pytest.raises(Problem, match="no time") as refused:
        embedder(spec(), [region(1)])
    assert refused.value.rule == "timeout"
    network.go.set()
    embedder.close()
