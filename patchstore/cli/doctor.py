"""`patchstore doctor`: what is wrong here, and what to do."""

from typing import Annotated

import typer

from .console import FAILED, print_json, print_line


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check versions, settings, disk, device, database, indexes, weights and Prefect.

    Changes nothing. Exit code 0: all is well, or there are only warnings; 1: there is a problem.
    """
    from dataclasses import asdict

    from patchstore.doctor import examine

    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for found in findings:
            advice = f"; {found.advice}" if found.advice else ""
            print_line(f"{found.level:<8} {found.check}: {found.text}{advice}")
    if any(finding.level == "problem" for finding in findings):
        raise SystemExit(FAILED)
