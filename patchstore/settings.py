"""All settings of all rooms, and which variables of the environment are none of them."""

import os
from difflib import get_close_matches

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from db.settings import StoreSettings
from extractor.settings import ExtractorSettings
from flows.settings import FlowSettings

from .api.settings import ServeSettings
from .errors import PREFIX, refused_settings

SECRETS_DIR = f"{PREFIX}SECRETS_DIR"  # not a setting: where settings are read from
OF_COMPOSE = {f"{PREFIX}PICTURES", f"{PREFIX}PUBLISH"}  # in the same .env, for docker-compose.yml
SETTINGS: tuple[type[BaseSettings], ...] = (
    StoreSettings,
    FlowSettings,
    ExtractorSettings,
    ServeSettings,
)


def known_variables() -> set[str]:
    """The variables that something of patchstore's own reads."""
    fields = {f"{PREFIX}{name.upper()}" for kind in SETTINGS for name in kind.model_fields}
    return fields | {SECRETS_DIR}


def unknown_variables() -> dict[str, str | None]:
    """Variables with our prefix that no setting reads, each with the one it may be meant for."""
    given = {name.upper() for name in (*os.environ, *dotenv_values(".env"))}
    known = known_variables()
    unknown = sorted(name for name in given - known - OF_COMPOSE if name.startswith(PREFIX))
    return {name: _nearest(name, known) for name in unknown}


def _nearest(name: str, known: set[str]) -> str | None:
    """By the part that differs: the prefix alone would make any two alike."""
    ends = {other.removeprefix(PREFIX): other for other in known}
    near = get_close_matches(name.removeprefix(PREFIX), ends, n=1)
    return ends[near[0]] if near else None


def invalid_variables() -> dict[str, str]:
    """Settings whose value is refused, each with the reason; never the value itself."""
    invalid: dict[str, str] = {}
    for kind in SETTINGS:
        try:
            kind()
        except ValidationError as error:
            invalid |= refused_settings(error)
    return invalid
