"""Which flow runs when and with what: the plans that `flows.deploy` carries into Prefect."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from prefect import Flow
from prefect.schedules import Schedule

from .audit import AuditRequest, audit
from .ingest import ingest
from .request import IngestRequest
from .schedule import cron_schedule, in_short
from .upkeep import BackfillRequest, ReindexRequest, backfill, prune, reindex

# Before the day begins, one after the other: what is deleted first need not be indexed or audited.
PRUNE_AT, REINDEX_AT, AUDIT_AT = "0 2 * * 0", "0 3 * * *", "0 4 * * *"
BY_HAND = None


@dataclass(frozen=True)
class Plan:
    """What runs when; its name is unique among the deployments of the flow.

    Attributes:
        schedule: None: when somebody starts it.
    """

    flow: Flow[..., Any]
    name: str
    parameters: dict[str, Any]
    schedule: Schedule | None
    tags: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prefect shows it: flow and deployment."""
        return f"{self.flow.name}/{self.name}"

    @property
    def when(self) -> str:
        """Its schedule in words."""
        if self.schedule is None:
            return "by hand"
        if self.schedule.cron is not None:
            return f"{self.schedule.cron} ({self.schedule.timezone})"
        assert self.schedule.interval is not None
        return f"every {in_short(self.schedule.interval)}"


def plan_ingest(request: IngestRequest, schedule: Schedule) -> Plan:
    """The plan of a source and a spec; two folders of one name have different ones."""
    folder = PurePath(request.source).name or "root"
    digest = hashlib.sha256(f"{request.source}\n{request.spec}".encode()).hexdigest()[:6]
    tags = (f"source:{request.source}", f"spec:{request.spec}")
    name = _allowed(f"{folder}-{request.spec}-{digest}")
    return Plan(ingest, name, {"request": request.model_dump()}, schedule, tags)


def plan_upkeep(spec: str, timezone: str) -> list[Plan]:
    """The plans that keep a spec sound: audit and reindex nightly, prune weekly, backfill by hand.

    Raises ScheduleError for an unknown time zone.
    """
    tags, name = (f"spec:{spec}",), _allowed(spec)
    prunes, reindexes, audits = (
        cron_schedule(line, timezone) for line in (PRUNE_AT, REINDEX_AT, AUDIT_AT)
    )
    return [
        Plan(prune, "all", {}, prunes),
        Plan(reindex, name, {"request": ReindexRequest(spec=spec).model_dump()}, reindexes, tags),
        Plan(audit, name, {"request": AuditRequest(spec=spec).model_dump()}, audits, tags),
        Plan(backfill, name, {"request": BackfillRequest(spec=spec).model_dump()}, BY_HAND, tags),
    ]


def _allowed(name: str) -> str:
    return re.sub(r"[/%&<>]", "-", name)  # Prefect allows none of these
