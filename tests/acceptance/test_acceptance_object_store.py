"""Pictures in an object store: ingested, searched, shown and checked like those in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from db.specs import StoredSpec
from patchstore.api.pictures import Pictures
from patchstore.api.pixels import PixelBudget


@pytest.fixture
def photos(bucket: Any, paint: Any) -> str:
    """The URL of three pictures."""
    for name in ("a.png", "b.png", "sub/c.png"):
        bucket.put(f"photos/{name}", paint(name, len(name) + ord(name[0])).read_bytes())
    return f"{bucket.url}/photos"


@pytest.fixture
def counts(command: Any, spec: StoredSpec, photos: str) -> Any:
    """Ingests the pictures; returns the counts of the summary that are asked for."""

    def run(*keys: str, options: tuple[str, ...] = ()) -> list[int]:
        words = ("--spec", "tiny", "--precision", "float32", "--json", *options)
        summary = json.loads(command("ingest", photos, *words).out)
        return [summary[key] for key in keys]

    return run


def test_a_second_run_computes_what_changed_and_forgets_what_is_gone(
    counts: Any, bucket: Any, paint: Any
) -> None:
    assert counts("found", "new", "done", "patches") == [3, 3, 3, 27]
    assert counts("unchanged", "patches") == [3, 0]
    bucket.put("photos/a.png", paint("changed.png", 1).read_bytes())
    bucket.put("photos/moved.png", paint("b.png", 103).read_bytes())
    bucket.delete("photos/b.png")
    assert counts("found", "changed", "moved", "vanished", "patches") == [3, 1, 1, 0, 9]
    bucket.delete("photos/moved.png")
    assert counts("found", "vanished") == [2, 1]


def test_a_dry_run_reads_the_store_and_counts_as_the_run_does(counts: Any) -> None:
    assert counts("found", "new", "patches", options=("--dry-run",)) == [3, 3, 27]


def test_an_emptied_place_is_no_reason_to_forget_it(
    counts: Any, command: Any, bucket: Any, photos: str
) -> None:
    counts()
    for name in ("a.png", "b.png", "sub/c.png"):
        bucket.delete(f"photos/{name}")
    refused = command("ingest", photos, "--spec", "tiny")
    assert (refused.code, "does not exist or holds nothing" in refused.err) == (1, True)
    assert counts("found", "vanished", options=("--allow-empty",)) == [0, 3]


def test_hits_are_shown_and_audited_from_the_store(
    counts: Any, command: Any, photos: str, store: Engine, tmp_path: Path
) -> None:
    counts()
    page = tmp_path / "hits.html"
    hits = json.loads(command("search", "--patch", f"{photos}/a.png@0,0", "-k", 3, "--json").out)
    assert hits[0]["uri"] == f"{photos}/a.png"
    beginning = ("--image", tmp_path / "pictures" / "a.png", "--prefix", f"{photos}/sub/")
    below = json.loads(command("search", *beginning, "--json").out)
    assert {hit["uri"] for hit in below} == {f"{photos}/sub/c.png"}
    assert command("search", "--patch", f"{photos}/a.png@0,0", "--html", page).code == 0
    assert "cannot be read" not in page.read_text()
    pictures = Pictures(store, PixelBudget(10**8, 30))
    assert pictures.jpeg(pictures.of_image(hits[0]["image_id"], 64)).startswith(b"\xff\xd8\xff")
    audited = json.loads(command("audit", "--spec", "tiny", "--json").out)
    assert (audited["files"], audited["missing"], audited["skipped"]) == (3, 0, 0)
    assert audited["problems"] == []


def test_a_new_spec_is_computed_from_the_store(counts: Any, command: Any, photos: str) -> None:
    counts()
    recipe = ("--backbone", "squeezenet1_1", "--weights", "random:1", "--patch-size", 48)
    assert command("spec", "add", "second", *recipe, "--stride", 24).code == 0
    assert command("backfill", "--spec", "second", f"{photos}/").code == 0
    assert "27" in command("status").out
