"""`patchstore neighbours`: a file with what is nearest to every patch."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from db.index import build_index
from db.neighbours import NeighbourOptions
from db.specs import StoredSpec
from patchstore.neighbours import COLUMNS, write_neighbours

PATCHES = 27


@pytest.fixture
def ingested(command: Any, paint: Any, spec: StoredSpec, folder: Path) -> Path:
    """Three pictures of nine patches each in the store."""
    for number in range(3):
        paint(f"{number}.png", number)
    assert command("ingest", folder, "--spec", "tiny", "--precision", "float32").code == 0
    return folder


@pytest.fixture
def matrix(command: Any, ingested: Path, tmp_path: Path) -> dict[str, Any]:
    """What `patchstore export` says: `vectors`, `boxes`, `uris`."""
    assert command("export", "--spec", "tiny", "--to", tmp_path / "matrix.npz").code == 0
    with np.load(tmp_path / "matrix.npz") as matrix:
        return dict(matrix)


def place(row: dict[str, Any], prefix: str = "") -> tuple[Any, ...]:
    return tuple(row[f"{prefix}{name}"] for name in ("uri", "x", "y", "width", "height"))


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("other_images", [False, True])
def test_a_table_has_a_row_for_each_neighbour(
    command: Any,
    store: Engine,
    spec: StoredSpec,
    matrix: dict[str, Any],
    tmp_path: Path,
    indexed: bool,
    other_images: bool,
) -> None:
    if indexed:
        build_index(store, spec, threshold=0, memory_mb=16)
    options = ["--other-images"] if other_images else []
    target = tmp_path / "graph.parquet"
    done = command("neighbours", "--spec", "tiny", "--k", 3, "--to", target, *options)
    assert done.code == 0, done.err
    assert done.err == f"wrote {3 * PATCHES} neighbours of {PATCHES} patches to {target}\n"
    table = pq.read_table(target)
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 3] * PATCHES
    assert [row["patch_id"] for row in rows] == sorted(row["patch_id"] for row in rows)
    vectors = matrix["vectors"].astype(np.float64)
    places = [(str(uri), *box) for uri, box in zip(matrix["uris"], matrix["boxes"], strict=True)]
    between = 1 - vectors @ vectors.T
    np.fill_diagonal(between, np.inf)
    if other_images:
        between[matrix["uris"][:, None] == matrix["uris"]] = np.inf
    for start in range(0, len(rows), 3):
        own = places.index(place(rows[start]))
        expected = np.argsort(between[own], kind="stable")[:3]
        got = [places.index(place(row, "neighbour_")) for row in rows[start : start + 3]]
        assert got == expected.tolist()
        distances = [row["distance"] for row in rows[start : start + 3]]
        np.testing.assert_allclose(distances, between[own][expected], atol=1e-6)


def test_arrays_hold_the_same_and_are_padded(command: Any, ingested: Path, tmp_path: Path) -> None:
    ask = ("neighbours", "--spec", "tiny", "--other-images", "-k", 20)
    for suffix in ("parquet", "npz"):
        assert command(*ask, "--to", tmp_path / f"n.{suffix}").code == 0
    table = pq.read_table(tmp_path / "n.parquet")
    with np.load(tmp_path / "n.npz") as arrays:
        ids, neighbours, distances = (
            arrays[name] for name in ("patch_ids", "neighbours", "distances")
        )
    assert (ids.shape, neighbours.shape, distances.shape) == ((PATCHES,), (PATCHES, 20), (27, 20))
    assert (ids.dtype, neighbours.dtype, distances.dtype) == (np.int64, np.int64, np.float32)
    assert (neighbours[:, 18:] == -1).all()
    assert np.isnan(distances[:, 18:]).all()
    assert neighbours[:, :18].ravel().tolist() == table["neighbour_patch_id"].to_pylist()
    assert np.repeat(ids, 18).tolist() == table["patch_id"].to_pylist()
    np.testing.assert_allclose(distances[:, :18].ravel(), table["distance"].to_numpy(), rtol=1e-6)


def test_a_threshold_leaves_what_is_near(command: Any, ingested: Path, tmp_path: Path) -> None:
    target = tmp_path / "n.parquet"
    ask = ("neighbours", "--spec", "tiny", "--to", target)
    assert command(*ask).code == 0
    near = float(np.median(pq.read_table(target)["distance"].to_numpy()))
    assert command(*ask, "--max-distance", near, "--exact").code == 0
    assert 0 < pq.read_table(target)["distance"].to_numpy().max() <= near


def test_an_empty_spec_gives_an_empty_file(command: Any, spec: StoredSpec, tmp_path: Path) -> None:
    for suffix in ("parquet", "npz"):
        done = command("neighbours", "--spec", "tiny", "--to", tmp_path / f"n.{suffix}")
        assert done.code == 0
        assert "wrote 0 neighbours of 0 patches" in done.err
    assert pq.read_table(tmp_path / "n.parquet").num_rows == 0
    with np.load(tmp_path / "n.npz") as arrays:
        assert arrays["neighbours"].shape == (0, 10)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_run_that_fails_leaves_nothing_and_what_was_there_before(
    store: Engine, spec: StoredSpec, ingested: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / "out" / f"n.{suffix}"
    target.parent.mkdir()
    target.write_text("of an earlier run")

    def fail(phase: str, share: float) -> None:
        if phase == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_neighbours(store, spec, target, NeighbourOptions(), fail)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_text() == "of an earlier run"


def test_a_killed_run_leaves_no_file_of_that_name(
    store: Engine, spec: StoredSpec, ingested: Path, tmp_path: Path
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from db.neighbours import NeighbourOptions
from db.server import connect
from db.specs import get_spec
from patchstore.neighbours import write_neighbours

def kill(phase, share):
    if phase == "comparing":
        os.kill(os.getpid(), signal.SIGKILL)

engine = connect()
write_neighbours(engine, get_spec(engine, "tiny"), Path(sys.argv[1]), NeighbourOptions(), kill)
"""
    target = tmp_path / "n.parquet"
    killed = subprocess.run(
        [sys.executable, "-c", program, target],
        env=dict(os.environ),
        cwd=Path(__file__).parent.parent.parent,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec", "tiny", "--to", "n.csv"], "n.csv must end in .npz or .parquet"),
        (["--spec", "tiny", "--to", "/no/such/n.npz"], "the folder /no/such does not exist"),
        (["--spec", "none", "--to", "{folder}/n.npz"], 'no spec named "none"; known: tiny'),
        (["--spec", "tiny", "--to", "{folder}/n.npz", "--k", "0"], "k is 0, expected 1 to 10000"),
        (
            ["--spec", "tiny", "--to", "{folder}/n.npz", "--max-distance", "nan"],
            "max_distance is not a number",
        ),
    ],
)
def test_a_mistake_is_one_line_and_no_file(
    command: Any, spec: StoredSpec, folder: Path, options: list[str], message: str
) -> None:
    failed = command("neighbours", *(option.format(folder=folder) for option in options))
    assert (failed.code, failed.out, failed.err.count("\n")) == (1, "", 1)
    assert failed.err.startswith("error: ")
    assert message in failed.err
    assert list(folder.iterdir()) == []
