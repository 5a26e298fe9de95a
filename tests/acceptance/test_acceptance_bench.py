"""A user measures a machine before an archive is computed on it."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchstore.bench import run
from patchstore.bench.home import COMMAND, environment

TINY = ("--backbone", "squeezenet1_1", "--patch-size", 48, "--seconds", 0.1)


@pytest.fixture
def pictures(paint: Any, folder: Path) -> Path:
    for number in range(3):
        paint(f"{number}.png", number)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def short_temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where everything temporary goes, by a path that a Unix socket's may begin with."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
    tempfile.tempdir = None


@pytest.mark.slow
def test_patchstore_and_the_tutorial_are_measured_over_a_folder(
    command: Any, pictures: Path, short_temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PARTS", (2,))
    cases = ("--case", "tutorial", "--case", "dense", "--json")
    outcome = command("bench", pictures, *TINY, *cases)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    # Of 48 pixels, every 24, in each of three pictures that can be read: 3 x 2 whole ones, and
    # patchstore shifts a last row inward.
    assert [row["patches"] for row in (*found["tutorial"], *found["dense"])] == [18, 27]
    assert all(row["peak_mib"] > 100 for row in (*found["tutorial"], *found["dense"]))
    assert found["missing"] == []
    assert not any(short_temporary.glob("patchstore-*"))


@pytest.mark.slow
def test_a_terminated_benchmark_leaves_nothing(pictures: Path, short_temporary: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "bench", pictures, *map(str, TINY), "--case", "exact"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(short_temporary) | {"TMPDIR": str(short_temporary)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("measuring patchstore exact"):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    process.stderr.close()
    assert not any(short_temporary.glob("patchstore-*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("/no/such/folder",), "/no/such/folder"),
        (("--backbone", "resnet19"), "resnet19"),
        (("--weights", "no-such.pth"), "no-such.pth"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    command: Any, arguments: tuple[str, ...], said: str
) -> None:
    outcome = command("bench", *arguments)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and said in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_folder_without_pictures_is_said(command: Any, tmp_path: Path) -> None:
    outcome = command("bench", tmp_path)
    assert outcome.code == 1
    assert (
        outcome.err == f"error: {tmp_path}: there are no images; give a folder with some, or none\n"
    )
