"""What a person is told when something is wrong: one line, and no secret."""

import pytest
from pydantic import ValidationError

from db.settings import StoreSettings
from extractor.settings import ExtractorSettings
from patchstore.api.settings import ServeSettings
from patchstore.errors import causes


@pytest.mark.parametrize(
    ("settings", "name", "value", "reason"),
    [
        (StoreSettings, "LEASE_S", "hidden-word", "a valid number"),
        (ExtractorSettings, "BATCH_SIZE", "0", "greater than or equal to 1"),
        (ServeSettings, "API_MAX_UPLOAD_MB", "inf", "a finite number"),
        (ServeSettings, "API_REQUEST_TIMEOUT_S", "inf", "less than or equal to 2147483"),
        (ServeSettings, "API_STATEMENT_TIMEOUT_S", "3000000", "less than or equal to 2147483"),
        (ServeSettings, "API_STATEMENT_TIMEOUT_S", "0.0001", "greater than or equal to 0.001"),
    ],
)
def test_a_refused_setting_is_named_as_it_was_set(settings, name, value, reason, monkeypatch):
    monkeypatch.setenv(f"PATCHSTORE_{name}", value)
    with pytest.raises(ValidationError) as refused:
        settings()
    said = causes(refused.value)
    assert said.startswith(f"PATCHSTORE_{name}: Input should be ") and reason in said
    assert said.endswith("; correct it in the environment or .env")
    assert "hidden-word" not in said
