"""Intervals and cron lines as a person writes them."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flows.errors import ScheduleError


@pytest.fixture
def read(prefect_api: str) -> Callable[..., Any]:
    """Reads what a person wrote."""
    from flows.schedule import read_schedule

    return read_schedule


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("6h", timedelta(hours=6)),
        ("1d", timedelta(days=1)),
    ],
)
def test_an_interval_is_a_number_and_a_unit(
    read: Callable[..., Any], text: str, length: timedelta
) -> None:
    assert read(text, None, "UTC").interval == length


@pytest.mark.parametrize(
    ("text", "short"), [("90s", "90s"), ("900s", "15m"), ("6h", "6h"), ("24h", "1d")]
)
def test_an_interval_is_told_as_it_may_be_written(
    read: Callable[..., Any], text: str, short: str
) -> None:
    from flows.schedule import in_short

    assert in_short(read(text, None, "UTC").interval) == short


def test_the_same_interval_means_the_same_moments_whenever_it_is_read(
    read: Callable[..., Any],
) -> None:
    assert read("15m", None, "UTC") == read("15m", None, "UTC")


def test_a_cron_line_is_read_in_its_time_zone(read: Callable[..., Any]) -> None:
    schedule = read(None, "0 3 * * *", "Europe/Berlin")
    assert (schedule.cron, schedule.timezone) == ("0 3 * * *", "Europe/Berlin")


@pytest.mark.parametrize(
    ("every", "cron", "timezone", "said"),
    [
        (None, None, "UTC", "give either"),
        ("15m", "0 3 * * *", "UTC", "give either"),
        ("soon", None, "UTC", "'soon' is no interval"),
        ("5s", None, "UTC", "10s at least"),
        ("0m", None, "UTC", "10s at least"),
        (None, "0 25 * * *", "UTC", "'0 25 * * *' is no cron line"),
        (None, "0 3 * * *", "Mars/Base", "'Mars/Base' is no time zone"),
        (None, "0 3 * * *", "localtime", "'localtime' is no time zone"),
        (None, "0 3 30 2 *", "UTC", "'0 3 30 2 *' is a time that never comes"),
        (None, "0 0 3 * * *", "UTC", "'0 0 3 * * *' is no cron line"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_was_expected(
    read: Callable[..., Any], every: str | None, cron: str | None, timezone: str, said: str
) -> None:
    with pytest.raises(ScheduleError, match=re.escape(said)):
        read(every, cron, timezone)
