"""When something runs: an interval such as `15m`, or a cron line in a time zone."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import available_timezones

from prefect.schedules import Schedule

from .errors import ScheduleError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
SHORTEST = timedelta(seconds=10)  # a run takes about as long to start
# Files beside the zones that are none, or of this machine alone: Prefect would never run by them.
NO_ZONES = {"localtime", "Factory", "posixrules"}
ANCHOR = datetime(2020, 1, 1, tzinfo=UTC)  # fixed, so that deploying again moves no run


def read_schedule(every: str | None, cron: str | None, timezone: str) -> Schedule:
    """The schedule of an interval or of a cron line in a time zone. Raises ScheduleError."""
    if cron is not None and every is None:
        return cron_schedule(cron, timezone)
    if every is not None and cron is None:
        return interval_schedule(every)
    raise ScheduleError("give either --every, such as 15m, or --cron, such as '0 3 * * *'")


def interval_schedule(interval: str) -> Schedule:
    """A run every `90s`, `15m`, `6h` or `1d`, counted from midnight UTC. Raises ScheduleError."""
    match = re.fullmatch(r"(\d{1,5})([smhd])", interval)
    length = timedelta(**{UNITS[match[2]]: int(match[1])}) if match else None
    if length is None or length < SHORTEST:
        raise ScheduleError(
            f"{interval!r} is no interval; expected a number and s, m, h or d, such as 15m, "
            f"and {SHORTEST.seconds}s at least"
        )
    return Schedule(interval=length, anchor_date=ANCHOR)


def in_short(interval: timedelta) -> str:
    """An interval as `interval_schedule` reads it: `15m`, `1d`."""
    units = ((letter, timedelta(**{name: 1})) for letter, name in reversed(UNITS.items()))
    return next(f"{interval // unit}{letter}" for letter, unit in units if not interval % unit)


def cron_schedule(line: str, timezone: str) -> Schedule:
    """A run whenever a cron line says so in a time zone. Raises ScheduleError."""
    if timezone not in available_timezones() - NO_ZONES:
        raise ScheduleError(f"{timezone!r} is no time zone; expected a name such as Europe/Berlin")
    try:
        # More fields are seconds and years, and seconds come last.
        if len(line.split()) != 5 and not line.startswith("@"):
            raise ValueError
        schedule = Schedule(cron=line, timezone=timezone, anchor_date=ANCHOR)
    except ValueError:
        raise ScheduleError(
            f"{line!r} is no cron line; expected minute, hour, day, month and weekday, "
            "such as '0 3 * * *'"
        ) from None
    if not _ever_comes(line, timezone):
        raise ScheduleError(f"{line!r} is a time that never comes")
    return schedule


def _ever_comes(line: str, timezone: str) -> bool:
    """Whether the cron line has a date: the 30th of February has none."""
    from prefect.server.schemas.schedules import CronSchedule  # by which Prefect's server goes

    try:
        return bool(asyncio.run(CronSchedule(cron=line, timezone=timezone).get_dates(1)))
    except ValueError:
        return False
