"""One automation of Prefect tells people of failed runs, through a block of theirs."""

import pytest

from flows.errors import NotificationError


@pytest.fixture
def client(prefect_api):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def automation(client):
    """Reads the automation; it is not there before a test nor left behind by one."""
    from flows.notify import AUTOMATION

    def remove():
        for known in client.read_automations_by_name(AUTOMATION):
            client.delete_automation(known.id)

    remove()
    yield lambda: client.read_automations_by_name(AUTOMATION)
    remove()


@pytest.fixture(scope="module")
def blocks(prefect_api):
    """Two blocks that notify, and one that does not."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.system import Secret

    ids = {
        name: CustomWebhookNotificationBlock(name=name, url="https://hooks.example/path").save(
            name, overwrite=True
        )
        for name in ("ops", "night")
    }
    Secret(value="hidden").save("quiet", overwrite=True)
    return {name: str(identity) for name, identity in ids.items()}


def test_a_failed_or_crashed_run_of_our_flows_is_told(client, automation, blocks) -> None:
    from flows.notify import notify_of_failures

    notify_of_failures(client, "custom-webhook/ops")
    (made,) = automation()
    assert made.enabled
    assert {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"} <= made.trigger.expect
    assert made.trigger.match_related.root["prefect.resource.id"] == "prefect.tag.patchstore"
    (action,) = made.actions
    assert str(action.block_document_id) == blocks["ops"]
    assert "{{ flow_run.name }}" in action.subject


def test_called_again_it_changes_the_one_automation(client, automation, blocks) -> None:
    from flows.notify import notify_of_failures

    notify_of_failures(client, "custom-webhook/ops")
    (before,) = automation()
    notify_of_failures(client, "custom-webhook/night")
    (after,) = automation()
    assert after.id == before.id
    assert str(after.actions[0].block_document_id) == blocks["night"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("custom-webhook/nobody", "there is no block 'custom-webhook/nobody'"),
        ("ops", "there is no block 'ops'; give TYPE/NAME"),
        ("secret/quiet", "the block 'secret/quiet' sends no notifications"),
    ],
)
def test_a_block_that_cannot_tell_anybody_is_refused(
    client, automation, blocks, block, message
) -> None:
    from flows.notify import notify_of_failures

    with pytest.raises(NotificationError, match=message):
        notify_of_failures(client, block)
    assert automation() == []
