"""What is printed is what there is: no name is changed, no row is broken."""

import signal
import subprocess
import sys

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


ENDED = """
import os, signal, sys, tempfile
from patchstore.cli.startup import end_in_order
end_in_order()
with tempfile.TemporaryDirectory(dir=sys.argv[1]):
    os.kill(os.getpid(), signal.SIGTERM)
    print("went on")
"""


def test_what_is_ended_by_sigterm_puts_away_what_it_had_begun(tmp_path):
    ended = subprocess.run([sys.executable, "-c", ENDED, tmp_path], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")
    assert list(tmp_path.iterdir()) == []
