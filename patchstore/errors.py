"""What can go wrong on the outside.

PatchstoreError
├── QuestionError      a question that makes no sense: which part, its value, what was expected
├── BenchError         a benchmark cannot begin: what it lacks, and where to get it
└── CaseFailed         one case of a benchmark; the others go on
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

PREFIX = "PATCHSTORE_"  # of the variables that are settings


class PatchstoreError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class QuestionError(PatchstoreError):
    """The question cannot be understood.

    Attributes:
        rule: which rule it breaks, a word for programs such as `region_outside`.
    """

    def __init__(self, message: str, rule: str = "question_invalid") -> None:
        super().__init__(message)
        self.rule = rule


class BenchError(PatchstoreError):
    """A benchmark cannot begin."""


class CaseFailed(PatchstoreError):
    """One way of a benchmark does not work here; the others go on."""


def causes(error: BaseException) -> str:
    """An error and what lies below it, in one line, each part once."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        # Below another error an OSError would only repeat the path.
        reason = getattr(current, "strerror", None) if parts else None
        text = " ".join(str(reason or _text(current)).split()) or type(current).__name__
        # A driver's error is in the store's own words above it already.
        if not parts or (isinstance(current, OSError) or _is_ours(current)):
            parts += [] if any(text in part for part in parts) else [text]
        current = current.__cause__
    return "; ".join(parts)


def refused_settings(error: "ValidationError") -> dict[str, str]:
    """The variables whose values a class of settings refuses, each with the reason.

    Never the value itself, which may be a secret.
    """
    problems = error.errors(include_input=False, include_url=False)
    return {f"{PREFIX}{str(each['loc'][0]).upper()}": each["msg"] for each in problems}


def _text(error: BaseException) -> str:
    from pydantic import ValidationError  # where it is raised it has been imported

    if not (isinstance(error, ValidationError) and error.title.endswith("Settings")):
        return str(error)
    said = "; ".join(f"{name}: {reason}" for name, reason in refused_settings(error).items())
    return f"{said}; correct it in the environment or .env"


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("db", "extractor", "flows", "patchstore")
