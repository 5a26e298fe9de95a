"""What a check has found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from patchstore.errors import causes

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at, in a word or two.
        level: a problem stops something from working; a warning may.
        text: what was found.
        advice: what to do; empty where nothing is to be done.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, advice: str) -> Finding:
    """Something will trouble somebody."""
    return Finding(check, "warning", text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    """Something does not work."""
    return Finding(check, "problem", text, advice)


def run(checks: Iterable[Callable[..., Iterable[Finding]]], *about: Any) -> list[Finding]:
    """The findings of all checks; one that fails is a problem itself, and the others go on."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check(*about))
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(problem(name, f"cannot be checked: {causes(error)}", ""))
    return findings
