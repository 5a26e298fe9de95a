"""What every benchmark prints: a Markdown table, and on which machine and when it was made."""

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import torch


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine(url: str) -> str:
    """One line: processor, cores, memory, versions, date.

    Args:
        url: of the database, asked for the versions of Postgres and pgvector.
    """
    with psycopg.connect(url) as connection:
        postgres = connection.execute("SHOW server_version").fetchone()
        vector = connection.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
    assert postgres is not None and vector is not None
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{_processor()}, {cores} cores, {memory:.0f} GiB",
        *([torch.cuda.get_device_name()] if torch.cuda.is_available() else []),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"PostgreSQL {str(postgres[0]).split()[0]}",
        f"pgvector {vector[0]}",
        f"{datetime.now(UTC):%Y-%m-%d}",
    ]
    return " · ".join(parts)


def _processor() -> str:
    """The model as the kernel names it; clouds hide it, so its widest instructions go with it."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    known = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    name = fields.get("model name", platform.machine())
    return f"{name} ({', '.join(known[:2])})" if known else name
