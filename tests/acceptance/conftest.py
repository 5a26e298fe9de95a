"""The command as a person types it, in this process where its start-up would only cost time."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db.specs import StoredSpec
from extractor.backbone import resolve
from extractor.spec import Recipe
from patchstore.store import register


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(
    prefect_api: str,
    store: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Runs `patchstore ARGUMENTS` on a fresh store."""

    def run(*arguments: object) -> Outcome:
        from patchstore.cli import main

        monkeypatch.setattr(sys, "argv", ["patchstore", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        captured = capfd.readouterr()
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def spec(store: Engine) -> StoredSpec:
    """An untrained SqueezeNet over patches of 48 pixels: 9 of them in a picture of 96 x 80."""
    recipe = Recipe(backbone="squeezenet1_1", weights="random:0", patch_size=48, stride=24)
    return register(store, "tiny", resolve(recipe))


@pytest.fixture
def building(store: Engine, spec: StoredSpec) -> StoredSpec:
    """The spec with an image that waits to be computed, and nothing to be searched."""
    from db.catalog import SeenFile, open_source, record_files, start_scan

    source, started = open_source(store, "/p"), start_scan(store)
    record_files(store, source, spec, [SeenFile("/p/a", 1, "m", b"\1" * 32, 9, 9)], started)
    return spec


def patchstore(*arguments: object, **environment: str) -> Outcome:
    """`patchstore ARGUMENTS` as a process of its own."""
    import os

    done = subprocess.run(
        [sys.executable, "-m", "patchstore", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, **environment},
        cwd=Path(__file__).parent.parent.parent,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(name="patchstore")
def patchstore_process() -> Command:
    """`patchstore ARGUMENTS` as a process of its own; keywords are environment variables."""
    return patchstore
