"""A store of a benchmark's own: a temporary PATCHSTORE_HOME, and the command run on it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dotenv import dotenv_values

from extractor.images import image_suffixes
from extractor.spec import Recipe
from extractor.uris import absolute
from patchstore.errors import CaseFailed

from .measure import communicate

SPEC = "benchmark"
COMMAND = Path(sys.executable).with_name("patchstore")
SOME_IMAGES_FAILED = 3
# Ours, and Prefect's own temporary one.
PREFECT_SERVERS = ("flows.local_server", "prefect.server.api.server:create_app")


@dataclass(frozen=True)
class SpecOptions:
    """What `patchstore spec add` is told."""

    backbone: str = "squeezenet1_1"
    weights: str = "random:0"
    patch_size: int = 224
    stride: int = 112
    mode: str = "exact"

    def arguments(self) -> list[str]:
        """As the command's options."""
        return [
            *("--backbone", self.backbone, "--weights", self.weights),
            *("--patch-size", str(self.patch_size), "--stride", str(self.stride)),
            *("--mode", self.mode),
        ]

    def recipe(self) -> Recipe:
        """What the command makes of it, for those who compute without the command."""
        return Recipe(
            self.backbone,
            self.weights,
            patch_size=self.patch_size,
            stride=self.stride,
            mode=self.mode,
        )


def parser(description: str | None, *, images_required: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=absolute, required=images_required, metavar="FOLDER")
    parser.add_argument("--backbone", default="squeezenet1_1", metavar="NAME")
    parser.add_argument("--weights", default="random:0", metavar="FILE|ENUM|random:SEED")
    parser.add_argument("--patch-size", type=int, default=224)
    parser.add_argument("--stride", type=int, default=112)
    return parser


def spec_options(arguments: argparse.Namespace) -> SpecOptions:
    """The spec that the options of `parser` ask for."""
    weights = absolute_weights(arguments.weights)
    return SpecOptions(arguments.backbone, weights, arguments.patch_size, arguments.stride)


def absolute_weights(weights: str) -> str:
    """A file's absolute path, for the command runs in a folder of its own; names as they are."""
    return str(absolute(weights)) if Path(weights).is_file() else weights


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted. Raises SystemExit where there are none."""
    files = find_images(folder)
    if not files:
        raise SystemExit(f"error: no images in {folder}")
    return files


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, sorted."""
    suffixes = image_suffixes()
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())


def spread(files: list[Path], count: int) -> list[Path]:
    """`count` files, evenly from the whole list; all of them where there are fewer."""
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A fresh home; afterwards whatever was started for it is ended and the folder is gone."""
    home = Path(tempfile.mkdtemp(prefix="patchstore-benchmark-"))
    try:
        yield home
    finally:
        # First what would start the servers again: whoever was interrupted within the call that
        # starts a command has no handle on it.
        _end(home, but="postgres")
        try:
            if (home / "postgres").exists():
                run_command(home, "stop")  # a Postgres that is killed leaves its shared memory
        finally:
            _end(home)
            shutil.rmtree(home, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    """The environment of a command on `home`: settings of a person's own store do not leak in.

    Those of the `.env` here are in it, for the command runs elsewhere.
    """
    # A folder of secrets may hold the URL of a store, too.
    places = ("PATCHSTORE_HOME", "PATCHSTORE_DATABASE_URL", "PATCHSTORE_SECRETS_DIR")
    hidden = ("PREFECT_", *places)
    given = {name: value or "" for name, value in dotenv_values(".env").items()} | dict(os.environ)
    kept = {name: value for name, value in given.items() if not name.upper().startswith(hidden)}
    return kept | {"PATCHSTORE_HOME": str(home)}


def start_command(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Starts the real command; its standard output is piped, its standard error goes to a file."""
    with (home / "command.log").open("a") as log:
        return subprocess.Popen(
            [COMMAND, *arguments],
            env=environment(home),
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def run_command(home: Path, *arguments: str) -> str:
    """Runs the command and returns what it prints; failed images are no failure.

    Raises:
        CaseFailed: the command failed; with the last line of its standard error.
    """
    return run_measured(home, *arguments)[0]


def run_measured(home: Path, *arguments: str) -> tuple[str, float]:
    """As `run_command`; with the peak memory of the command's process in MiB."""
    process = start_command(home, *arguments)
    output, peak = communicate(process)
    if process.returncode not in (0, SOME_IMAGES_FAILED):
        log = (home / "command.log").read_text().strip().splitlines()
        raise CaseFailed(
            f"patchstore {arguments[0]} ended with {process.returncode}: {log[-1] if log else ''}"
        )
    return output, peak


def add_spec(home: Path, options: SpecOptions) -> str:
    """Starts a store in `home` with the spec `SPEC`; returns the database's URL."""
    run_command(home, "spec", "add", SPEC, *options.arguments())
    return database_url(home)


def database_url(home: Path) -> str:
    """The URL of the store in `home`."""
    return run_command(home, "db", "url").strip()


@dataclass(frozen=True)
class IngestRun:
    """One `patchstore ingest --json`: its summary, how long the whole process took, its memory."""

    summary: dict[str, Any]
    wall_s: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Patches a second, from the flow's start to its end."""
        return float(self.summary["patches"] / self.summary["seconds"])

    @property
    def startup_s(self) -> float:
        """What goes before the flow's start and after its end."""
        return self.wall_s - float(self.summary["seconds"])


def ingest(home: Path, images: Path, precision: str = "auto") -> IngestRun:
    """Runs `patchstore ingest` to its end."""
    begun = time.perf_counter()
    output, peak = run_measured(
        home, "ingest", str(images), "--spec", SPEC, "--precision", precision, "--json"
    )
    return IngestRun(json.loads(output), time.perf_counter() - begun, peak)


def prefect_servers(home: Path) -> list[int]:
    """The process ids of Prefect's own servers that were started for `home`."""
    return [
        process.pid
        for process in _started(home)
        if any(server in " ".join(process.info["cmdline"] or ()) for server in PREFECT_SERVERS)
    ]


def _end(home: Path, *, but: str | None = None) -> None:
    """Kills what was started for `home`, whatever it is doing, until nothing of it is left."""
    while left := [process for process in _started(home) if process.info["name"] != but]:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _started(home: Path) -> list[psutil.Process]:
    """The processes with `home` in their environment, which children inherit."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline", "environ"])
        if (process.info["environ"] or {}).get("PATCHSTORE_HOME") == str(home)
    ]
