"""`patchstore metadata`: labels from a file, then searches by them."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db.catalog import SeenFile, open_source, record_files, start_scan
from db.specs import StoredSpec


@pytest.fixture
def photos(store: Engine, spec: StoredSpec, folder: Path) -> Path:
    """Three pictures that were seen, without vectors."""
    source, started = open_source(store, str(folder)), start_scan(store)
    files = [
        SeenFile(str(folder / f"{n}.png"), 1, "mark", bytes([n]) * 32, 96, 80) for n in range(3)
    ]
    record_files(store, source, spec, files, started)
    return folder


@pytest.fixture
def metadata(store: Engine, photos: Path) -> Any:
    """The metadata in the store by file name."""

    def read() -> dict[str, Any]:
        with store.connect() as connection:
            rows = connection.execute(text("SELECT uri, metadata FROM patchstore.image_location"))
            return {Path(uri).name: values for uri, values in rows}

    return read


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_narrow_a_search(
    command: Any, paint: Any, spec: StoredSpec, folder: Path, tmp_path: Path
) -> None:
    for number in range(3):
        paint(f"{number}.png", number)
    command("ingest", folder, "--spec", "tiny", "--precision", "float32")
    labels = tmp_path / "labels.csv"
    labels.write_text(f"uri,shelf\n{folder / '1.png'},3\n{folder / '2.png'},4\n")
    assert command("metadata", labels).err == "files whose metadata were set: 2\n"
    asked = command("search", "--image", folder / "0.png", "--filter", '{"shelf": 3}', "--json")
    assert {hit["uri"] for hit in json.loads(asked.out)} == {str(folder / "1.png")}


def test_json_lines_replace_or_merge(
    command: Any, photos: Path, metadata: Any, tmp_path: Path
) -> None:
    zero, one = str(photos / "0.png"), str(photos / "1.png")
    first = {"shelf": 3, "tags": ["a", {"b": None}]}
    file = lines(
        tmp_path / "a.jsonl", {"uri": zero, "metadata": first}, {"uri": one, "metadata": {"n": 1}}
    )
    assert command("metadata", file).code == 0
    assert metadata() == {"0.png": first, "1.png": {"n": 1}, "2.png": {}}
    file = lines(tmp_path / "b.jsonl", {"uri": zero, "metadata": {"shelf": 4}})
    assert command("metadata", file, "--merge").code == 0
    assert metadata()["0.png"] == {**first, "shelf": 4}
    assert command("metadata", file).code == 0
    assert metadata()["0.png"] == {"shelf": 4}


def test_cells_of_csv_are_numbers_truth_values_or_text(
    command: Any, photos: Path, metadata: Any, tmp_path: Path
) -> None:
    file = tmp_path / "Labels.CSV"
    file.write_bytes(
        b"\xef\xbb\xbfa,uri,b,c,d,e,f\r\n"
        b'3,%b,-1.5e2,true,007,"two\r\nlines, ""quoted""",\r\n'
        b"null,%b,NaN,True,1e999,[1],\xc3\xa9\r\n"
        % (str(photos / "0.png").encode(), str(photos / "1.png").encode())
    )
    assert command("metadata", file).code == 0
    assert metadata()["0.png"] == {
        **{"a": 3, "b": -150.0, "c": True, "d": "007", "e": 'two\r\nlines, "quoted"'}
    }
    assert metadata()["1.png"] == {
        **{"a": "null", "b": "NaN", "c": "True", "d": "1e999", "e": "[1]", "f": "é"}
    }


def test_paths_may_be_relative_and_lines_come_from_standard_input(
    command: Any, photos: Path, metadata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    rows = [
        {"uri": "./0.png", "metadata": {"n": 0}},
        {"uri": f"file://{photos}/1.png", "metadata": {"n": 1}},
    ]
    piped = "".join(json.dumps(row) + "\n\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert command("metadata", "-").err == "files whose metadata were set: 2\n"
    assert metadata() == {"0.png": {"n": 0}, "1.png": {"n": 1}, "2.png": {}}
    assert json.loads(command("metadata", "--show", "0.png").out) == {"n": 0}
    assert json.loads(command("metadata", "--show", photos / "1.png").out) == {"n": 1}


def test_unknown_files_are_counted_and_the_others_set(
    command: Any, photos: Path, metadata: Any, tmp_path: Path
) -> None:
    uris = [*(f"/gone/{n}.png" for n in range(5)), str(photos / "0.png")]
    file = lines(tmp_path / "a.jsonl", *({"uri": uri, "metadata": {"n": 1}} for uri in uris))
    failed = command("metadata", file)
    assert failed.code == 1
    assert failed.err == (
        "error: 5 URIs are not in the store: /gone/0.png, /gone/1.png, /gone/2.png, ...; "
        "the other 1 are set\n"
    )
    assert metadata()["0.png"] == {"n": 1}
    assert "/gone/0.png is not in the store" in command("metadata", "--show", "/gone/0.png").err


GOOD = '{"uri": "{uri}", "metadata": {"n": 1}}\n'


def bad_lines() -> Iterator[tuple[str, str, str]]:
    """A file's name, its text, and what is said."""
    for content, message in {
        "{": "line 2: is not JSON",
        "3": "line 2: is not an object of the form",
        '{"uri": "a"}': "line 2: is not an object of the form",
        '{"uri": "a", "metadata": {}, "shelf": 3}': "line 2: is not an object of the form",
        '{"uri": 3, "metadata": {}}': "line 2: needs a string as uri",
        '{"uri": "a", "metadata": []}': "line 2: needs a string as uri and an object",
        '{"uri": "", "metadata": {}}': "line 2: has an empty uri",
        '{"uri": "a", "metadata": {"n": NaN}}': "line 2: cannot be stored: ",
        '{"uri": "a", "metadata": {"n": 1e999}}': "line 2: cannot be stored: ",
        '{"uri": "a", "metadata": {"n": ["\\u0000"]}}': "line 2: cannot be stored: ",
        '{"uri": "a", "metadata": {"\\ud800": 1}}': "line 2: cannot be stored: ",
        '{"uri": "a\\u0000", "metadata": {}}': "line 2: cannot be stored: ",
        '{"uri": "a", "metadata": ' + "[" * 100_000: "line 2: is not JSON",
        '{"uri": "a", "metadata": {"n": ' + "[" * 40 + "]" * 40 + "}}": "nested more than 32 deep",
        "\x00\xff": "is not UTF-8",
    }.items():
        yield "a.jsonl", GOOD + content, message
    for content, message in {
        "": "line 1: must name the columns",
        "file,shelf\na,3\n": "line 1: must name the columns, each once, and one of them uri",
        "uri,a,a\nx,1,2\n": "line 1: must name the columns",
        "uri,a\n{uri},1\nx,1,2\n": "line 3: has 3 cells, the header has 2",
        'uri,a\n{uri},1\nx,"1\n': "line 3: is not CSV",
        "uri,a\n{uri},1\n,1\n": "line 3: has an empty uri",
    }.items():
        yield "a.csv", content, message


@pytest.mark.parametrize(("name", "content", "message"), list(bad_lines()))
def test_a_bad_line_is_named_and_nothing_is_set(
    command: Any, photos: Path, metadata: Any, tmp_path: Path, name: str, content: str, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content.replace("{uri}", str(photos / "0.png")).encode("latin-1"))
    failed = command("metadata", file)
    assert (failed.code, failed.out, failed.err.count("\n")) == (1, "", 1)
    assert failed.err.startswith(f"error: {file}")
    assert message in failed.err
    assert metadata() == {"0.png": {}, "1.png": {}, "2.png": {}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a FILE or --show URI"),
        (["a.jsonl", "--show", "b"], "give either a FILE or --show URI"),
        (["--merge", "--show", "b"], "--merge is for a FILE; --show URI sets nothing"),
        (["a.txt"], "a.txt must end in .jsonl or .csv, or be - for JSON lines"),
        (["/no/such/a.csv"], "/no/such/a.csv cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(command: Any, arguments: list[str], message: str) -> None:
    failed = command("metadata", *arguments)
    assert (failed.code, failed.err.count("\n")) == (1, 1)
    assert message in failed.err
