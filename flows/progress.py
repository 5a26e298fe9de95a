"""How a run tells whoever started it what is going on, in the same process."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Summary:
    """What a run found and did.

    `found` = `new` + `changed` + `moved` + `unchanged` compares files with the last scan;
    `done`, `failed` and `pending` say where these files stand after the run and add up to `found`,
    but for files that the store keeps of a folder which could not be listed; `elsewhere` are those
    of the pending ones that another run is computing;
    `patches` and `seconds` are this run's own. `others` are files that are no images, `unlisted`
    folders that could not be listed (their files, as last seen, still count in `done` and so on),
    `reasons` how often images fail for which reason.

    `stage_seconds` are summed over the batches, which overlap: `scan`, `load` (the network), `read`
    (and decode), `wait` (of decoded batches for the device), `forward`, `write`, `index`.
    `device_busy` is the share of the computing phase in which a forward pass was running,
    `gpu_utilization` what the GPU itself says of that phase.
    """

    found: int = 0
    new: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    vanished: int = 0
    done: int = 0
    failed: int = 0
    pending: int = 0
    elsewhere: int = 0
    patches: int = 0
    seconds: float = 0.0
    patches_per_second: float = 0.0
    others: int = 0
    precision: str | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    device_busy: float | None = None
    gpu_utilization: float | None = None
    unlisted: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def is_troubled(self) -> bool:
        """Whether some images or folders did not go through."""
        return bool(self.failed or self.unlisted)

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)

    def stage_shares(self) -> dict[str, float]:
        """Each stage's part of the run's time; they overlap, and so may add up to more than 1."""
        return {stage: s / max(self.seconds, 1e-9) for stage, s in self.stage_seconds.items()}


class Listener:
    """Hears what a run does; the methods are called from several threads, so keep them short."""

    def started(self) -> None:
        """The flow has begun: process and server are up."""

    def phase(self, name: str) -> None:
        """A new part of the run begins, in words for a person."""

    def queued(self, images: int) -> None:
        """So many images will be computed."""

    def image(self, image_id: int, patches: int, failed: bool) -> None:
        """One image is written, or has failed."""

    def share(self, name: str, share: float) -> None:
        """A part without images is done to this share, 0 to 1."""

    def finished(self, summary: Summary) -> None:
        """The run is over."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listener() -> Listener:
    """Who listens to this run; a deaf one where nobody does."""
    return _listener.get() or Listener()


@contextmanager
def listening(to: Listener) -> Iterator[None]:
    """Makes `to` the listener of runs started inside."""
    token = _listener.set(to)
    try:
        yield
    finally:
        _listener.reset(token)
