"""`schemathesis run` over the service's own description."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class SchemaRun:
    """What schemathesis found: its exit code (0: no failure), its cases and its words."""

    code: int
    cases: int
    output: str


def run_schemathesis(url: str, folder: Path, *, examples: int, seed: int = 1) -> SchemaRun:
    """Runs all checks and all phases against a service.

    Args:
        url: of the service.
        folder: where it may write.
        examples: cases of each operation and phase.
        seed: the same cases for the same seed.
    """
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--no-color"),
            *("--config-file", HERE / "schemathesis.toml"),
            *("run", f"{url}/openapi.json", "--checks", "all"),
            *("--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"),
        ],
        env={**os.environ, "PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "strategies"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    cases = re.search(r"(\d+) generated", done.stdout)
    return SchemaRun(done.returncode, int(cases[1]) if cases else 0, done.stdout)
