"""What processes of their own give, and their peak memory."""

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from patchstore.errors import CaseFailed, causes

T = TypeVar("T")

POLL_S = 0.05


def apart(call: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """What a function of a module gives in a fresh process, and that one's peak memory in MiB.

    The process ends with this call, however it ends.

    Raises:
        CaseFailed: the function raised, or the process died; with the reason.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(theirs, call, arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        reason, found, peak = ours.recv()
    except EOFError:
        child.join()
        reason, found, peak = f"its process ended with {child.exitcode}", None, 0.0
    finally:
        child.kill()
        child.join()
    if reason is not None:
        raise CaseFailed(reason)
    return found, peak


def _send(to: Connection, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.dup2(2, 1)  # what libraries chat is none of the benchmark's output
    try:
        found = call(*arguments)
    except (Exception, SystemExit) as error:
        to.send((causes(error), None, 0.0))
    else:
        to.send((None, found, peak_mib()))


def communicate(process: "subprocess.Popen[str]") -> tuple[str, float]:
    """Standard output of a process until its end, and its peak memory in MiB."""
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.communicate()[0]))
    reader.start()
    peak = 0.0
    try:
        while reader.is_alive():
            peak = max(peak, peak_mib(process.pid))
            reader.join(POLL_S)
    finally:  # whoever is interrupted here leaves no process behind
        process.kill()
    return output[0], peak


def peak_mib(process: int | None = None) -> float:
    """The most memory that a process (None: this one) has had resident; 0 once it is gone."""
    try:
        status = Path(f"/proc/{process or 'self'}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else 0.0  # in kB; a process that ends has none
