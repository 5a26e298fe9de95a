"""Telling people that a run failed: a Prefect automation, so it works where the run's process died.

The words go through a notification block (Slack, e-mail, Teams, a webhook), which holds its secrets
in Prefect; here only its name is known.
"""

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from .deploy import TAG
from .errors import NotificationError

AUTOMATION = "patchstore: a run failed"
ENDS = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
SUBJECT = "patchstore: {{ flow_run.name }} {{ flow_run.state.name | lower }}"
BODY = "{{ flow_run.state.message }}\n\n{{ flow_run | ui_url or '' }}"


def notify_of_failures(client: SyncPrefectClient, block: str) -> None:
    """Has Prefect send a notification when a deployed run of ours fails or crashes.

    Idempotent: called again with another block it changes the one automation.

    Args:
        client: of the Prefect API.
        block: `TYPE/NAME` of a notification block, as `prefect block ls` shows it.

    Raises:
        NotificationError: there is no such block, or it sends no notifications.
    """
    wanted = _automation(_find_block(client, block))
    known = client.read_automations_by_name(AUTOMATION)
    if known:
        client.update_automation(known[0].id, wanted)
    else:
        client.create_automation(wanted)


def _find_block(client: SyncPrefectClient, block: str) -> BlockDocument:
    kind, _, name = block.partition("/")
    try:
        found = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise NotificationError(
            f"there is no block {block!r}; give TYPE/NAME of one that `prefect block ls` lists, "
            "such as slack-webhook/ops"
        ) from None
    if found.block_schema is None or "notify" not in found.block_schema.capabilities:
        raise NotificationError(
            f"the block {block!r} sends no notifications; give a notification block, such as one "
            "of the type slack-webhook"
        )
    return found


def _automation(block: BlockDocument) -> AutomationCore:
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    return AutomationCore(
        name=AUTOMATION,
        description="Made by patchstore; its settings are written anew by each deploy.",
        trigger=EventTrigger(
            expect=ENDS,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=ours,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=block.id, subject=SUBJECT, body=BODY)],
    )
