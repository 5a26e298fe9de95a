"""A store over the years: audited, mended, moved to a better network and back."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db.specs import StoredSpec
from extractor import images, windows

Paint = Callable[..., Path]
TINY = ("--backbone", "squeezenet1_1", "--patch-size", 48, "--stride", 24)


def test_an_audit_says_in_its_exit_code_what_is_wrong_and_how_it_is_mended(
    command: Any, paint: Paint, folder: Path, store: Engine, spec: StoredSpec
) -> None:
    for n in range(3):
        paint(f"{n}.png", n)
    assert command("ingest", folder, "--spec", "tiny").code == 0
    sound = command("audit", "--json")
    assert (sound.code, json.loads(sound.out)["problems"]) == (0, [])
    with store.begin() as connection:
        connection.execute(text(f"DELETE FROM {spec.partition} WHERE x = 0 AND image_id = 1"))
    wrong = command("audit", "--sample", 5)
    assert wrong.code == 3
    assert "wrong: 1 images have another number of rows than was recorded; run: " in wrong.err
    assert "queued 1 images again" in command("audit", "--requeue").err
    assert command("ingest", folder, "--spec", "tiny").code == 0
    assert command("audit").code == 0
    assert "index of tiny: not needed, it is built from 50,000 patches on" in command("reindex").err


def test_pictures_that_are_taken_for_large_ones_have_the_vectors_of_small_ones(
    command: Any, paint: Paint, folder: Path, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        paint(f"{n}.png", n)
    with monkeypatch.context() as patched:
        patched.setattr(images, "LARGE", 0)
        patched.setattr(windows, "LARGE", 60 * 48)
        assert command("ingest", folder, "--spec", "tiny", "--precision", "float32").code == 0
    audit = json.loads(command("audit", "--json").out)
    assert (audit["sampled"], audit["skipped"], audit["differing"]) == (27, 0, 0)


def test_searches_by_an_alias_move_to_a_new_spec_and_back(
    command: Any, paint: Paint, folder: Path, spec: StoredSpec
) -> None:
    picture = paint("a.png")
    command("ingest", folder, "--spec", "tiny")
    assert command("spec", "promote", "tiny").err == "live stands for tiny now\n"
    command("spec", "add", "better", *TINY, "--weights", "random:1", "--metric", "l2")

    early = command("spec", "promote", "better")
    assert early.code == 1
    assert "1 images are not computed under spec 'better' yet" in early.err
    filled = command("backfill", "--spec", "better")
    assert (filled.code, "promote better" in filled.err) == (0, True)
    assert command("spec", "promote", "better").err == "live stands for better now; it was tiny\n"
    assert "live" in command("spec", "list").out.splitlines()[2]

    question = ("search", "--patch", f"{picture}@0,0", "--json", "--spec")
    found = {name: command(*question, name).out for name in ("live", "better", "tiny")}
    assert found["live"] == found["better"] != found["tiny"]
    refused = command("spec", "remove", "better", "--yes")
    assert (refused.code, "searches by live ask" in refused.err) == (1, True)
    assert command("spec", "promote", "tiny").code == 0
    assert command(*question, "live").out == found["tiny"]
    assert "deleted spec better with 9 patches" in command("spec", "remove", "better", "--yes").err


def test_a_backfill_shows_the_sources_that_went_through_beside_one_that_did_not(
    command: Any, paint: Paint, folder: Path, tmp_path: Path, spec: StoredSpec
) -> None:
    paint("a.png")
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone)
    command("ingest", folder, "--spec", "tiny")
    command("ingest", gone, "--spec", "tiny")
    shutil.rmtree(gone)
    told = command("backfill", "--spec", "tiny")
    assert (told.code, "1 of 2 sources failed" in told.err) == (1, True)
    assert str(folder) in told.out


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_a_spec_stays_unless_somebody_says_yes(
    command: Any, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    asked = command("spec", "remove", "tiny")
    assert (asked.code, "nothing is deleted; --yes does not ask" in asked.err) == (1, True)
    assert "tiny" in command("spec", "list").out


def test_the_failures_of_an_alias_are_those_of_its_spec(
    command: Any, folder: Path, paint: Paint, spec: StoredSpec
) -> None:
    paint("good.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    command("ingest", folder, "--spec", "tiny")
    command("spec", "promote", "tiny")
    assert "broken.jpg" in command("failures", "--spec", "live").out
    assert "failed images that are pending again: 1;" in command("retry", "--spec", "live").err
    unknown = command("failures", "--spec", "typo")
    assert unknown.err == 'error: no spec named "typo"; known: live, tiny\n'
    assert "no alias any more" in command("spec", "remove", "live").err
