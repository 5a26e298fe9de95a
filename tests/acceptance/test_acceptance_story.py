"""The whole way with real processes: a home of its own, the embedded server, kill -9."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Paint = Callable[..., Path]
TINY = ("--backbone", "squeezenet1_1", "--weights", "random:0", "--patch-size", 48, "--stride", 24)


@pytest.mark.slow
def test_from_a_folder_to_an_answer_with_nothing_but_the_command(
    patchstore: Any, paint: Paint, folder: Path, tmp_path: Path
) -> None:
    home = {"PATCHSTORE_HOME": str(tmp_path / "home"), "PREFECT_API_URL": "", "PREFECT_HOME": ""}
    for n in range(4):
        paint(f"{n}.png", n)
    try:
        assert patchstore("spec", "add", "tiny", *TINY, **home).code == 0
        done = patchstore("ingest", folder, "--spec", "tiny", "--json", **home)
        assert done.code == 0, done.err
        assert json.loads(done.out)["patches"] == 36
        asked = patchstore(
            "search", "--patch", f"{folder / '2.png'}@0,0", "--other-images", "--json", **home
        )
        assert len(json.loads(asked.out)) == 10
        url = patchstore("db", "url", **home).out.strip()
        assert url.startswith("postgresql://")
        assert {path.name for path in (tmp_path / "home").iterdir()} == {"postgres", "prefect"}
        with (tmp_path / "home" / "prefect" / "in-use.lock").open() as used:
            fcntl.flock(used, fcntl.LOCK_SH)  # as every run has it
            refused = patchstore("stop", **home)
        assert (refused.code, refused.out) == (1, "")
        assert refused.err.startswith("error: a run, a worker or serve still needs them, in ")
    finally:
        stopped = patchstore("stop", **home)
    assert "Prefect server: stopped" in stopped.err
    assert "Postgres: stopped" in stopped.err
