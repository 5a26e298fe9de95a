"""Writes `docs/cli.md` from the help texts of the command.

python docs/generate_cli.py            writes the page
python docs/generate_cli.py --check    exit code 1 if the page is not current
"""

import os
import sys
from pathlib import Path
from typing import Any

# Before typer is imported: the page must not depend on whose terminal made it.
for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE"):
    os.environ.pop(name, None)
os.environ |= {"TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from patchstore.cli.main import app  # noqa: E402

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command

`patchstore` and its commands, as their `--help` says it. This page is written by
`python docs/generate_cli.py`; do not edit it by hand. What the numbers, the JSON keys and the exit
codes mean is in the [README](../README.md).
"""


def page() -> str:
    """The page as Markdown."""
    sections = [HEAD]
    for words in commands(typer.main.get_command(app)):
        title = " ".join(("patchstore", *words))
        sections.append(f"## {title}\n\n```text\n{help_of(words)}\n```\n")
    return "\n".join(sections)


def commands(command: Any, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command, groups before what is in them."""
    found = [words]
    for name, below in getattr(command, "commands", {}).items():
        found += commands(below, (*words, name))
    return found


def help_of(words: tuple[str, ...]) -> str:
    """What `patchstore WORDS --help` prints."""
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="patchstore")
    if result.exit_code:
        raise SystemExit(f"patchstore {' '.join(words)} --help: {result.output}")
    lines = [line.rstrip() for line in result.output.splitlines()]
    return "\n".join(lines).strip("\n")


def main() -> None:
    """Writes or checks the page."""
    new = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != new:
            raise SystemExit(f"{PAGE.name} is not current; run: python docs/generate_cli.py")
        return
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
