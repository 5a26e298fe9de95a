"""What a person types, and what comes back."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from db.browse import set_metadata_many
from db.search import search
from db.specs import StoredSpec
from extractor.errors import WeightsError

Paint = Callable[..., Path]
KEYS = [
    "found",
    "new",
    "changed",
    "moved",
    "unchanged",
    "vanished",
    "done",
    "failed",
    "pending",
    "patches",
    "seconds",
    "patches_per_second",
    "precision",
    "stage_seconds",
    "device_busy",
    "gpu_utilization",
]


@pytest.fixture
def ingested(command: Any, paint: Paint, spec: StoredSpec, folder: Path) -> Path:
    """Three pictures in the store."""
    for n in range(3):
        paint(f"{n}.png", n)
    assert command("ingest", folder, "--spec", "tiny", "--precision", "float32").code == 0
    return folder


def test_the_summary_is_one_json_object_with_the_promised_keys(
    command: Any, paint: Paint, spec: StoredSpec, folder: Path
) -> None:
    paint("a.png")
    done = command("ingest", folder, "--spec", "tiny", "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert list(summary) == KEYS
    assert (summary["found"], summary["done"], summary["patches"]) == (1, 1, 9)


def test_failed_images_give_exit_code_3_and_their_reasons(
    command: Any, paint: Paint, spec: StoredSpec, folder: Path
) -> None:
    paint("good.png")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    done = command("ingest", folder, "--spec", "tiny")
    assert done.code == 3
    assert "done 1, failed 1, pending 0" in done.err
    assert re.search(r"forward \d+%.*; device busy \d+% of computing", done.err)
    (failure,) = json.loads(command("failures", "--json").out)
    assert list(failure) == ["uri", "reason"]
    assert failure["uri"] == str(folder / "broken.jpg")
    assert failure["reason"] in done.err


def test_retry_makes_failed_images_due_again(command: Any, spec: StoredSpec, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"not a picture")
    command("ingest", folder, "--spec", "tiny")
    assert "failed images that are pending again: 1;" in command("retry").err
    assert json.loads(command("status", "--json").out)["sources"][0]["pending"] == 1


def test_a_patch_of_its_own_image_is_found_first(command: Any, ingested: Path) -> None:
    image = ingested / "1.png"
    asked = command("search", "--image", image, "--region", "24,0,48,48", "--k", 3, "--json")
    hits = json.loads(asked.out)
    assert [hit["exact"] for hit in hits] == [True] * 3
    assert hits[0]["uri"] == str(image)
    assert hits[0]["box"] == [24, 0, 48, 48]
    assert hits[0]["distance"] == pytest.approx(0.0, abs=1e-5)


def test_a_table_of_hits_says_by_what_and_how_they_were_found(command: Any, ingested: Path) -> None:
    asked = command("search", "--patch", f"{ingested / '1.png'}@0,0")
    assert "spec tiny, cosine distance, nearest patch first, exact" in asked.err


def test_other_images_leaves_the_asked_image_out(command: Any, ingested: Path) -> None:
    image = ingested / "1.png"
    for question in (["--image", image], ["--patch", f"{image}@24,0"]):
        hits = json.loads(command("search", *question, "--other-images", "-k", 18, "--json").out)
        assert len(hits) == 18
        assert str(image) not in {hit["uri"] for hit in hits}


def test_a_dense_patch_is_found_again_by_its_region(
    command: Any, paint: Paint, folder: Path
) -> None:
    image = paint("a.png")
    paint("b.png", 1)
    names = ("--backbone", "squeezenet1_1", "--weights", "random:0", "--mode", "dense")
    assert command("spec", "add", "dense", *names, "--patch-size", 48, "--stride", 24).code == 0
    # Stored in bf16, which `auto` may choose where there is some, it is 1e-5 away from itself.
    stored = command("ingest", folder, "--spec", "dense", "--precision", "float32")
    assert stored.code == 0
    asked = command("search", "--image", image, "--region", "24,24,48,48", "--json", "--k", 1)
    (hit,) = json.loads(asked.out)
    assert (Path(hit["uri"]).name, hit["box"]) == (image.name, [24, 24, 48, 48])
    assert hit["distance"] == pytest.approx(0, abs=1e-5)


def test_images_are_ranked_once_each(command: Any, ingested: Path) -> None:
    asked = command("search", "--patch", f"{ingested / '1.png'}@0,0", "--by", "image", "--json")
    uris = [hit["uri"] for hit in json.loads(asked.out)]
    assert sorted(uris) == sorted(str(ingested / f"{n}.png") for n in range(3))


def test_a_search_is_narrowed_by_prefix_metadata_and_distance(
    command: Any, ingested: Path, store: Engine
) -> None:
    one, two = (str(ingested / f"{n}.png") for n in (1, 2))
    unknown = set_metadata_many(store, [(one, {"shelf": 3}), (two, {"shelf": 4})])
    assert unknown == []
    question = ("search", "--patch", f"{one}@0,0", "-k", 50, "--json")

    def uris(*options: object) -> list[str]:
        return [hit["uri"] for hit in json.loads(command(*question, *options).out)]

    assert uris("--prefix", two) == [two] * 9
    assert uris("--prefix", os.path.relpath(ingested) + "/") == uris()
    assert uris("--filter", '{"shelf": 3}') == [one] * 9
    assert uris("--filter", '{"shelf": 4}', "--prefix", one) == []
    assert uris("--max-distance", 0.000001) == [one]


def test_merged_hits_of_an_image_do_not_overlap(command: Any, ingested: Path) -> None:
    question = ("search", "--patch", f"{ingested / '1.png'}@0,0", "-k", 50, "--merge", "--json")
    boxes = [hit["box"] for hit in json.loads(command(*question).out)]
    assert boxes[0] == [0, 0, 48, 48]
    assert [24, 0, 48, 48] not in boxes
    assert 3 <= len(boxes) < 27


def test_the_picture_with_the_same_arrangement_comes_first(command: Any, ingested: Path) -> None:
    image = ingested / "2.png"
    asked = command(
        *("search", "--image", image, "--region", "0,0,96,80", "--consistent", "--json")
    )
    first, *others = json.loads(asked.out)
    assert (first["uri"], first["box"]) == (str(image), [0, 0, 96, 80])
    assert len(others) == 2
    shown = command("search", "--image", image, "--region", "0,0,96,80", "--consistent").out
    assert [line.split()[1] for line in shown.splitlines()[:2]] == ["agree", "9"]


def test_an_exported_vector_finds_its_patch(command: Any, ingested: Path, tmp_path: Path) -> None:
    target = tmp_path / "matrix.npz"
    assert command("export", "--spec", "tiny", "--to", target).code == 0
    with np.load(target) as matrix:
        vectors, boxes, uris = matrix["vectors"], matrix["boxes"], matrix["uris"]
    assert (vectors.shape, vectors.dtype) == ((27, 512), np.float32)
    assert (boxes.shape, boxes.dtype) == ((27, 4), np.int32)
    assert uris.shape == (27,)
    np.save(tmp_path / "query.npy", vectors[5])
    hits = json.loads(command("search", "--vector", tmp_path / "query.npy", "--json").out)
    assert (hits[0]["uri"], hits[0]["box"]) == (str(uris[5]), boxes[5].tolist())


def test_a_spec_that_is_building_is_not_exported(
    command: Any, building: StoredSpec, tmp_path: Path
) -> None:
    refused = command("export", "--spec", building.name, "--to", tmp_path / "m.npz")
    assert refused.code == 1
    assert "is still building" in refused.err
    assert list(tmp_path.glob("m*")) == []


def test_parquet_and_npz_hold_the_same(command: Any, ingested: Path, tmp_path: Path) -> None:
    for suffix in ("npz", "parquet"):
        assert command("export", "--spec", "tiny", "--to", tmp_path / f"m.{suffix}").code == 0
    table = pq.read_table(tmp_path / "m.parquet")
    with np.load(tmp_path / "m.npz") as matrix:
        np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), matrix["vectors"])
        assert table["uri"].to_pylist() == matrix["uris"].tolist()
        np.testing.assert_array_equal(table["y"].to_numpy(), matrix["boxes"][:, 1])


def test_the_page_shows_pictures_from_nowhere_else(
    command: Any, ingested: Path, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "result.html"
    done = command("search", "--image", ingested / "0.png", "-k", 4, "--html", page)
    assert done.code == 0
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 4 + 2
    assert "http" not in text


def test_a_page_without_hits_says_so(command: Any, ingested: Path, tmp_path: Path) -> None:
    page = tmp_path / "result.html"
    narrow = ("--filter", '{"shelf": 99}', "--html", page)
    assert command("search", "--image", ingested / "0.png", *narrow).code == 0
    assert "Nothing was found." in page.read_text()


def test_the_page_shows_no_picture_but_the_one_that_was_stored(
    command: Any, ingested: Path, paint: Paint, tmp_path: Path
) -> None:
    paint("1.png", 99)
    page = tmp_path / "result.html"
    command("search", "--image", ingested / "0.png", "-k", 27, "--html", page)
    assert page.read_text().count("its file is gone, unreadable or another one now") == 9


def test_prune_deletes_what_vanished_once_it_is_old_enough(command: Any, ingested: Path) -> None:
    (ingested / "0.png").unlink()
    command("ingest", ingested, "--spec", "tiny")
    said = command("prune").err
    assert "deleted 0 vanished files, 0 images, 0 patches" in said
    assert "kept 1 files that vanished only lately" in said
    said = command("prune", "--keep-days", 0).err
    assert "deleted 1 vanished files, 1 images, 9 patches, records of 0 runs" in said


def test_a_source_is_forgotten_while_its_files_are_still_there(
    command: Any, ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(ingested / "0.png", other)
    command("ingest", other, "--spec", "tiny")
    assert "nobody said yes" in command("forget", ingested).err
    said = command("forget", ingested, "--yes").err
    assert "3 files; deleted 2 images with 18 patches" in said
    hits = json.loads(command("search", "--image", other / "0.png", "-k", 27, "--json").out)
    assert {hit["uri"] for hit in hits} == {str(other / "0.png")}
    assert str(ingested) not in command("status").out
    again = command("forget", ingested, "--yes")
    assert (again.code, "was never ingested" in again.err) == (1, True)
    command("ingest", ingested, "--spec", "tiny")
    assert str(ingested) in command("status").out


def test_a_dry_run_says_what_a_run_would_do_and_does_nothing(
    command: Any, ingested: Path, paint: Paint
) -> None:
    paint("new.png", 7)
    before = command("status", "--json").out
    plan = json.loads(command("ingest", ingested, "--spec", "tiny", "--dry-run", "--json").out)
    assert (plan["found"], plan["new"], plan["unchanged"]) == (4, 1, 3)
    assert (plan["images"], plan["patches"]) == (1, 9)
    assert plan["patches_per_second"] > 0
    assert command("status", "--json").out == before


def test_a_dry_run_opens_nothing_that_is_no_file(
    command: Any, folder: Path, spec: StoredSpec, paint: Paint
) -> None:
    paint("a.png", 1)
    os.mkfifo(folder / "b.png")
    plan = json.loads(command("ingest", folder, "--spec", "tiny", "--dry-run", "--json").out)
    assert (plan["images"], plan["unreadable"], plan["unlisted"]) == (2, 1, [])


def test_control_characters_in_a_name_are_written_out(
    command: Any, folder: Path, spec: StoredSpec, paint: Paint
) -> None:
    picture = paint("a\nb\x1b[31m.png", 1)
    command("ingest", folder, "--spec", "tiny", "--precision", "float32")
    rows = command("search", "--image", picture, "-k", "2").out.splitlines()
    assert len(rows) == 3
    assert all(row.endswith(r"a\nb\x1b[31m.png") for row in rows[1:])


def test_settings_that_are_no_text_are_said_with_their_file(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    assert command("status").err == f"error: {tmp_path / '.env'} is not UTF-8 text\n"


def test_a_file_that_cannot_be_written_is_named(command: Any, ingested: Path) -> None:
    page = command("search", "--image", ingested / "0.png", "--html", "/dev/full")
    assert (page.code, page.err) == (
        1,
        "error: /dev/full cannot be written: No space left on device\n",
    )


def test_a_dry_run_knows_what_a_spec_lacks_and_what_is_known_by_another_name(
    command: Any, ingested: Path, store: Engine
) -> None:
    def due(folder: Path, spec: str) -> list[int]:
        plan = json.loads(command("ingest", folder, "--spec", spec, "--dry-run", "--json").out)
        return [plan[key] for key in ("found", "moved", "unchanged", "images", "copies", "patches")]

    weights = ("--backbone", "squeezenet1_1", "--weights", "random:1", "--patch-size", 48)
    assert command("spec", "add", "second", *weights, "--stride", 24).code == 0
    copies = shutil.copytree(ingested, ingested.parent / "copies")
    assert due(ingested, "tiny") == [3, 0, 3, 0, 0, 0]
    assert due(ingested, "second") == [3, 0, 3, 3, 0, 27]
    assert due(copies, "tiny") == [3, 3, 0, 0, 3, 0]
    shutil.copy(copies / "0.png", copies / "again.png")
    assert due(copies, "second") == [4, 4, 0, 3, 1, 27]


def test_a_dry_run_counts_files_as_the_run_then_does(
    command: Any, ingested: Path, paint: Paint
) -> None:
    def counts(*options: str) -> list[int]:
        told = json.loads(command("ingest", ingested, "--spec", "tiny", "--json", *options).out)
        keys = ("found", "new", "changed", "moved", "unchanged", "vanished")
        return [told[key] for key in keys]

    def agreed() -> list[int]:
        planned = counts("--dry-run")
        assert planned == counts()
        return planned

    (ingested / "sub").mkdir()
    (ingested / "0.png").rename(ingested / "sub" / "renamed.png")
    shutil.copy(ingested / "1.png", ingested / "copied.png")
    os.utime(ingested / "1.png")
    paint("2.png", 77)
    paint("added.png", 78)
    shutil.copy(ingested / "added.png", ingested / "twin.png")
    (ingested / "broken.png").write_bytes(b"no picture")
    assert agreed() == [7, 3, 1, 2, 1, 0]
    (ingested / "added.png").unlink()
    (ingested / "2.png").unlink()
    assert agreed() == [5, 0, 0, 0, 5, 2]
    paint("2.png", 77)
    assert agreed() == [6, 0, 0, 1, 5, 0]


def test_a_folder_that_is_gone_is_forgotten_where_that_is_said(
    command: Any, ingested: Path, store: Engine, spec: StoredSpec
) -> None:
    shutil.rmtree(ingested)
    assert "does not exist" in command("ingest", ingested, "--spec", "tiny").err
    assert command("ingest", ingested, "--spec", "tiny", "--allow-empty").code == 0
    assert search(store, spec, np.ones(spec.dim, np.float32)).hits == []
    never = command("ingest", "/no/such/folder", "--spec", "tiny", "--allow-empty")
    assert (never.code, "does not exist, and was never ingested" in never.err) == (1, True)


def test_who_interrupts_is_told_how_to_go_on(command: Any, monkeypatch: Any) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("db.reports.last_runs", interrupted)
    stopped = command("status")
    assert (stopped.code, stopped.out) == (130, "")
    assert "run the same command again to go on" in stopped.err


STUBBORN = """
import time
from importlib import import_module

main = import_module("patchstore.cli.main")  # whose package has a function of that name

def work():
    try:
        print("up", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)

main.app = work
main.start()
"""


def test_who_interrupts_again_waits_for_nothing() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for word in ("up", "ending"):
        assert process.stdout.readline() == f"{word}\n"
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "stopped; what was finished is stored, run the same command again to go on\n"


LINGERING = """
import threading, time
from importlib import import_module

main = import_module("patchstore.cli.main")
main.LEAVE_S = 0.2

def work():
    threading._register_atexit(time.sleep, 60)  # as Prefect waits for a server that is gone
    raise SystemExit(3)

main.app = work
main.start()
"""


def test_a_command_that_is_done_ends_whatever_others_wait_for() -> None:
    assert subprocess.run([sys.executable, "-c", LINGERING], timeout=50).returncode == 3


def test_the_version_is_told(command: Any) -> None:
    told = command("--version")
    assert (told.code, told.out) == (0, f"{version('patchstore')}\n")


def test_a_prefect_api_that_cannot_be_reached_is_one_line(
    patchstore: Any, home: Path, store: Engine
) -> None:
    url = store.url.render_as_string(hide_password=False)
    failed = patchstore(
        "prune",
        PREFECT_API_URL="http://127.0.0.1:9/api",
        PATCHSTORE_DATABASE_URL=url,
        PATCHSTORE_HOME=str(home),
    )
    assert failed.code == 1
    assert failed.err.startswith("error: the Prefect API does not answer: ")
    assert failed.err.count("\n") == 1


def test_a_spec_is_shown_with_every_field(command: Any, spec: StoredSpec) -> None:
    shown = json.loads(command("spec", "show", "tiny", "--json").out)
    assert shown == {"name": "tiny", "digest": spec.digest, **spec.recipe}
    assert "tiny" in command("spec", "list").out


def test_the_same_name_with_another_recipe_is_refused_with_the_difference(
    command: Any, spec: StoredSpec
) -> None:
    same = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--patch-size", 48]
    assert command("spec", "add", "tiny", *same, "--stride", 24).code == 0
    other = command("spec", "add", "tiny", *same, "--stride", 12)
    assert other.code == 1
    assert "stride: 24 in the store, 12 now" in other.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "/no/such/folder", "--spec", "tiny"], "/no/such/folder does not exist"),
        (["ingest", "{folder}", "--spec", "none"], 'no spec named "none"; known: tiny'),
        (["spec", "show", "none"], 'no spec named "none"; known: tiny'),
        (["search"], "give exactly one of --image, --patch and --vector"),
        (["search", "--patch", "a.jpg"], "is not URI@x,y"),
        (["search", "--patch", "a.jpg@0,0"], "/a.jpg at 0,0; it has no such image"),
        (["search", "--image", "/no/such.jpg"], "/no/such.jpg cannot be read"),
        (["search", "--image", "{picture}", "--region", "0,0,9"], "is not x,y,w,h"),
        (
            ["search", "--image", "{picture}", "--region", "60,0,48,48"],
            "does not lie inside {picture}, which is 96 x 80",
        ),
        (["search", "--image", "{picture}", "--region", "9,9,0,40"], "0 x 40 pixels of {picture}"),
        (["search", "--image", "{text}"], "text.txt: "),
        (["search", "--vector", "{text}"], "is not a .npy file with one vector"),
        (["search", "--vector", "{torn}"], "is not a .npy file with one vector"),
        *[
            (["search", "--image", "{picture}", "--k", k, *way], f"k is {k}, expected 1 to 10000")
            for k in ("0", "-3", "10001")
            for way in ([], ["--consistent"], ["--merge"])
        ],
        (["search", "--image", "{picture}", "--filter", "shelf=3"], "'shelf=3' is not JSON"),
        (["search", "--image", "{picture}", "--filter", "[3]"], "is not a JSON object"),
        (["search", "--image", "{picture}", "--filter", '{{"a": 1e400}}'], "NaN or infinity"),
        (["search", "--patch", "a.jpg@99999999999,0"], "is not URI@x,y"),
        (["search", "--image", "{picture}", "--max-distance", "nan"], "max_distance"),
        (["search", "--patch", "a.jpg@0,0", "--region", "0,0,9,9"], "--region is a part of"),
        (["search", "--patch", "a.jpg@0,0", "--consistent"], "ranked by arrangement only where"),
        (["serve", "--host", "0.0.0.0"], "set PATCHSTORE_API_TOKENS"),
        (["export", "--spec", "tiny", "--to", "m.csv"], "must end in .npz or .parquet"),
        (["spec", "add", "x", "--backbone", "resnet19"], "resnet19"),
        (["spec", "add", "x", "--weights", "gone.pth"], "gone.pth"),
        (["spec", "add", "x", "--weights", "~nobody-of-this-name/w.pth"], "neither a file"),
        (["spec", "add", "x", "--weights", "random:1", "--stride", "0"], "stride"),
        (["spec", "add", "x", "--weights", "random:1", "--edge", "wrap"], "wrap"),
        (["spec", "add", "", "--weights", "random:1"], "'' is no name of a spec"),
        (["spec", "add", "a b\n", "--weights", "random:1"], "'a b\\n' is no name of a spec"),
        (["spec", "add", "a\x1b[31m", "--weights", "random:1"], "'a\\x1b[31m' is no name"),
        (["failures", "--spec", "\udcff"], "'\\udcff' is not UTF-8 text"),
        (["ingest", "~nobody-of-this-name", "--spec", "tiny"], "~nobody-of-this-name does not"),
        (["search", "--image", "/dev/zero"], "/dev/zero is a device"),
        (["search", "--image", "{picture}", "--filter", '{{"a": NaN}}'], "is not JSON"),
        (["search", "--image", "{picture}", "--filter", "[" * 5000], "is not JSON"),
        (["search", "--image", "{picture}", "-k", "9" * 30], "expected 1 to 10000"),
        (["neighbours", "--spec", "tiny", "--to", "n.npz", "-k", "-1"], "k is -1, expected 1"),
        (["ingest", "", "--spec", "tiny"], "the name of the folder with images is empty"),
        (["retry", "/no/such/folder"], "/no/such/folder was never ingested"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    command: Any,
    spec: StoredSpec,
    paint: Paint,
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    torn = tmp_path / "torn.npy"
    torn.write_bytes(b"PK\x03\x04 and no more")
    values = {"folder": str(folder), "picture": str(paint("a.png")), "text": str(text)}
    values["torn"] = str(torn)
    failed = command(*(argument.format(**values) for argument in arguments))
    assert failed.code == 1
    assert failed.out == ""
    assert failed.err.count("\n") == 1
    assert failed.err.startswith("error: ")
    assert message.format(**values) in failed.err


def test_a_database_that_cannot_be_reached_is_one_line_without_the_password(
    patchstore: Any, home: Path, folder: Path
) -> None:
    url = "postgresql://someone:hunter2@127.0.0.1:9/none"
    failed = patchstore("status", PATCHSTORE_DATABASE_URL=url, PATCHSTORE_HOME=str(home))
    assert failed.code == 1
    assert failed.err.count("\n") == 1
    assert failed.err.startswith("error: ")
    assert "hunter2" not in failed.err


def test_status_tells_why_a_run_failed(
    command: Any,
    paint: Paint,
    folder: Path,
    spec: StoredSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paint("a.png", 1)

    def missing(_stored: object) -> Any:
        raise WeightsError("weights gone.pth are not here")

    monkeypatch.setattr("flows.models.load", missing)
    assert command("ingest", folder, "--spec", spec.name).code == 1
    (run,) = json.loads(command("status", "--json").out)["runs"]
    assert f"run {run['id']}: weights gone.pth are not here\n" in command("status").out


def test_an_empty_store_says_what_to_do_next(command: Any, store: Engine) -> None:
    assert "run: patchstore ingest FOLDER" in command("status").err


def test_the_doctor_finds_nothing_wrong_after_an_ingest_and_says_what_is_misspelt(
    command: Any, ingested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHSTORE_DEVISE", "cpu")
    done = command("doctor")
    assert done.code == 0, done.out
    levels = {line.split()[0] for line in done.out.splitlines()}
    assert levels <= {"ok", "warning"}
    assert (
        "PATCHSTORE_DEVISE is no setting and does nothing; is PATCHSTORE_DEVICE meant?" in done.out
    )


def test_the_programs_for_a_backup_are_where_the_command_says(command: Any) -> None:
    folder = Path(command("db", "bin").out.strip())
    assert {"pg_dump", "pg_restore", "psql"} <= {path.name for path in folder.iterdir()}
