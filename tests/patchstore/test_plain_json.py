"""Metadata and filters are what the database can hold, and as long as is said."""

import pytest

from patchstore.plain_json import check_object


def test_characters_are_counted_as_they_are_written_and_not_as_escapes() -> None:
    check_object({"name": 80 * "ж"}, 100)
    with pytest.raises(ValueError, match="102 characters of JSON, expected at most 100"):
        check_object({"name": 90 * "ж"}, 100)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": "\0"}, "a NUL character"),
        ({"a": "\ud800"}, "half a character"),
        ({"a": float("nan")}, "NaN or infinity"),
    ],
)
def test_what_postgres_cannot_hold_is_refused_with_its_reason(
    value: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_object(value, 100)


def test_a_backslash_before_an_escape_is_no_nul() -> None:
    check_object({"a": "\\u0000"}, 100)
