"""Progress bars, on standard error."""

import threading
import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from flows.progress import Listener, Summary

from .console import err


class ProgressBar(Listener):
    """Images done, patches a second, time left. A bar on a terminal, silent elsewhere.

    Attributes:
        summary: the run's, once it is over.
        startup_s: from the command's start to the flow's, seconds.
    """

    def __init__(self, begun: float) -> None:
        """`begun` is when the command started, of `time.monotonic`."""
        self.summary: Summary | None = None
        self._begun = begun
        self.startup_s = 0.0
        self._lock = threading.Lock()
        self._patches = 0
        self._failed = 0
        self._computing_since = 0.0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("starting", total=None, detail="")

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._progress.stop()

    def started(self) -> None:
        """The server is up and the flow has begun."""
        self.startup_s = time.monotonic() - self._begun

    def phase(self, name: str) -> None:
        """Shows what the run is at."""
        self._progress.update(self._task, description=name)

    def queued(self, images: int) -> None:
        """Sets the bar's length."""
        self._computing_since = time.monotonic()
        self._progress.update(self._task, total=images, completed=0)

    def image(self, image_id: int, patches: int, failed: bool) -> None:
        """Moves the bar."""
        with self._lock:
            self._patches += patches
            self._failed += failed
            rate = self._patches / max(time.monotonic() - self._computing_since, 1e-9)
            trouble = f" · {self._failed} failed" if self._failed else ""
            self._progress.update(
                self._task, advance=1, detail=f"images · {rate:.0f} patches/s{trouble}"
            )

    def share(self, name: str, share: float) -> None:
        """Shows the share of a part, such as the index."""
        self._progress.update(
            self._task, description=name, total=100, completed=round(100 * share), detail="%"
        )

    def finished(self, summary: Summary) -> None:
        """Keeps the summary for the closing lines."""
        self.summary = summary


class ShareBar:
    """A bar of the share done, on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(console=err, transient=True, disable=not err.is_terminal)
        self._task = self._progress.add_task("starting", total=1)

    def __enter__(self) -> "ShareBar":
        self._progress.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._progress.stop()

    def share(self, phase: str, share: float) -> None:
        """Moves the bar; the share is 0 to 1."""
        self._progress.update(self._task, description=phase, completed=share)
