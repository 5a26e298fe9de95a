"""JSON objects that the database can hold and every answer can carry: metadata, and filters."""

import json
import re
from typing import Any

MOST_OF_A_FILTER = 10_000  # characters
MOST_OF_METADATA = 1_000_000
MAX_DEPTH = 32
_NUL = re.compile(r"(?<!\\)(\\\\)*\\u0000")  # in JSON, where a backslash is written twice


def check_object(value: dict[str, Any], most: int) -> None:
    """Checks a JSON object of so many characters at most. Raises ValueError, with the reason."""
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    except ValueError:
        raise ValueError("it holds NaN or infinity") from None
    if _NUL.search(text):
        raise ValueError("it holds a NUL character")
    if len(text) > most:
        raise ValueError(f"{len(text)} characters of JSON, expected at most {most}")


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth
