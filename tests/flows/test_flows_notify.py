"""One automation of Prefect tells people of failed runs, through a block of theirs."""

import pytest

from flows.errors import NotificationError, PrefectApiAway


@pytest.fixture
def automation(prefect_api):
    """Reads the automation; it is not there before a test nor left behind by one."""
    from prefect.client.orchestration import get_client

    from flows.notify import AUTOMATION

    def read():
        with get_client(sync_client=True) as client:
            return client.read_automations_by_name(AUTOMATION)

    def remove():
        with get_client(sync_client=True) as client:
            for known in client.read_automations_by_name(AUTOMATION):
                client.delete_automation(known.id)

    remove()
    yield read
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


def test_a_failed_or_crashed_run_of_our_flows_is_told(automation, blocks) -> None:
    from flows.notify import notify_of_failures

    notify_of_failures("custom-webhook/ops", ["ingest", "audit"])
    (made,) = automation()
    assert made.enabled
    assert {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"} <= made.trigger.expect
    assert made.trigger.match_related["prefect.resource.name"] == ["ingest", "audit"]
    (action,) = made.actions
    assert str(action.block_document_id) == blocks["ops"]
    assert "{{ flow_run.name }}" in action.subject


def test_called_again_it_changes_the_one_automation(automation, blocks) -> None:
    from flows.notify import notify_of_failures

    notify_of_failures("custom-webhook/ops", ["ingest"])
    (before,) = automation()
    notify_of_failures("custom-webhook/night", ["ingest", "audit"])
    (after,) = automation()
    assert after.id == before.id
    assert str(after.actions[0].block_document_id) == blocks["night"]
    assert after.trigger.match_related["prefect.resource.name"] == ["ingest", "audit"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("custom-webhook/nobody", "there is no block 'custom-webhook/nobody'"),
        ("ops", "there is no block 'ops'; give TYPE/NAME"),
        ("secret/quiet", "the block 'secret/quiet' sends no notifications"),
    ],
)
def test_a_block_that_cannot_tell_anybody_is_refused(automation, blocks, block, message) -> None:
    from flows.notify import notify_of_failures

    with pytest.raises(NotificationError, match=message):
        notify_of_failures(block, ["ingest"])
    assert automation() == []


def test_an_api_that_is_away_is_said_without_its_password(prefect_api, monkeypatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.notify import notify_of_failures

    away = "http://user:hidden-word@127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", away)
    with temporary_settings({PREFECT_API_URL: away}), pytest.raises(PrefectApiAway) as error:
        notify_of_failures("custom-webhook/ops", ["ingest"])
    assert str(error.value).startswith("the Prefect API at http://127.0.0.1:9/api does not answer")
    assert "hidden-word" not in str(error.value)
