"""The service does what its own description says, for whatever schemathesis thinks up.

The long version: `python -m benchmarks.fuzz`.
"""

import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import run_schemathesis

HERE = Path(__file__).parent


@pytest.mark.slow
def test_no_request_finds_the_service_at_odds_with_its_description(url, tmp_path) -> None:
    done = run_schemathesis(url, tmp_path, examples=5)
    sys.stdout.write(done.output)
    assert done.code == 0
    assert done.cases > 300
