"""What is printed is what there is: no name is changed, no row is broken."""

import pytest

from patchstore.cli import console

ODD = "/photos/a:cat:[bold].jpg"


def test_a_name_that_looks_like_markup_or_an_emoji_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.print_line(ODD)
    console.print_table(["file"], [[ODD]])
    console.say(f"error: {ODD}")
    printed = capsys.readouterr()
    assert printed.out.split() == [ODD, "file", ODD]
    assert printed.err == f"error: {ODD}\n"


def test_a_row_with_a_long_uri_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "s3://bucket/" + 400 * "folder/" + "a.jpg"
    monkeypatch.setattr(console.out, "_width", console.PIPE_WIDTH)
    console.print_table(["uri", "distance"], [[uri, 0.25], ["b.jpg", 1]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["uri", "distance"],
        [uri, "0.25"],
        ["b.jpg", "1"],
    ]
