"""Checks of this machine: programs, settings, disk, device."""

import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from db.settings import StoreSettings
from extractor.images import DEFAULT_MAX_PIXELS
from extractor.settings import ExtractorSettings
from flows.settings import FlowSettings
from patchstore.api.auth import expired, parse_tokens
from patchstore.api.settings import ServeSettings
from patchstore.errors import PatchstoreError
from patchstore.settings import invalid_variables, unknown_variables

from .finding import Finding, ok, problem, warning

NAMED = ("patchstore", "torch", "torchvision", "prefect")
LITTLE_BYTES = 10_000_000_000
TOO_LITTLE_BYTES = 1_000_000_000


def check_versions() -> Iterator[Finding]:
    """What is installed, and whether it is what patchstore asks for."""
    named = ", ".join(f"{name} {version(name)}" for name in NAMED)
    wrong = {need.name: found for need, found in _unmet()}
    if not wrong:
        yield ok("versions", f"Python {platform.python_version()}, {named}")
    for need, found in _unmet():
        yield problem("versions", f"{need} is needed, {found} is installed", "install it again")


def _unmet() -> Iterator[tuple[Requirement, str]]:
    for need in map(Requirement, requires("patchstore") or ()):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            yield need, "none"
        else:
            if not need.specifier.contains(found, prereleases=True):
                yield need, found


def check_settings() -> Iterator[Finding]:
    """Variables that no setting reads, and values that a setting refuses."""
    unknown, invalid = unknown_variables(), invalid_variables()
    for name, meant in unknown.items():
        advice = f"is {meant} meant?" if meant else "take it away; README.md lists the settings"
        yield warning("settings", f"{name} is no setting and does nothing", advice)
    for name, reason in invalid.items():
        yield problem("settings", f"{name}: {reason}", "README.md says what it may be")
    if not unknown and not invalid:
        yield ok("settings", "every PATCHSTORE_ variable is known and valid")


def check_tokens() -> Iterator[Finding]:
    """That `serve` takes its tokens, and that each of them opens something."""
    if invalid_variables():
        return  # `check_settings` names them
    try:
        tokens = parse_tokens(ServeSettings().api_tokens.get_secret_value())
    except PatchstoreError as error:
        yield problem("tokens", str(error), "patchstore serve does not start")
        return
    lines = expired(tokens)
    for line in lines:
        yield warning("tokens", line, "take it away, or give another")
    if not lines:
        yield ok("tokens", f"{len(tokens)}" if tokens else "none: serve is for this machine only")


def check_disk() -> Iterator[Finding]:
    """Room where the embedded set-up writes."""
    home = StoreSettings().resolved_home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 1e9:.1f} GB free at {home}"
    if free < TOO_LITTLE_BYTES:
        yield problem("disk", text, "make room; Postgres stops when there is none")
    elif free < LITTLE_BYTES:
        yield warning("disk", text, "make room; patchstore ingest --dry-run tells the need")
    else:
        yield ok("disk", text)


def check_temporary_files() -> Iterator[Finding]:
    """Room for the pixels of large pictures, on a disk."""
    folder = Path(tempfile.gettempdir())  # raises where there is none
    most, window = ExtractorSettings().max_pixels, FlowSettings().window
    free, needed = shutil.disk_usage(folder).free, 3 * most * window
    text = f"{free / 1e9:.1f} GB free in {folder}"
    advice = "set TMPDIR to a folder on a large disk, or PATCHSTORE_MAX_PIXELS to fewer"
    if free < needed:
        largest = f"{window} pictures of {most:,} pixels take {needed / 1e9:.1f} GB"
        yield warning("temporary files", f"{text}; {largest}", advice)
    elif most > DEFAULT_MAX_PIXELS and _is_memory(folder):
        yield warning("temporary files", f"{text}, which is memory", advice)
    else:
        yield ok("temporary files", text)


def _is_memory(folder: Path) -> bool:
    above = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    kinds = (above[place] for place in (folder, *folder.parents) if place in above)
    return next(kinds, "") in ("tmpfs", "ramfs")


def check_device() -> Iterator[Finding]:
    """What computes, and in which precisions."""
    from extractor.device import FLOAT32, candidates, choose_device, device_kind
    from extractor.errors import DeviceError

    try:
        device = choose_device(ExtractorSettings().device)
    except DeviceError as error:
        yield problem("device", str(error), "see PATCHSTORE_DEVICE")
    else:
        precisions = ", ".join((FLOAT32, *candidates(device)))
        yield ok("device", f"{device_kind(device)}: {precisions}")


CHECKS = (
    check_versions,
    check_settings,
    check_tokens,
    check_disk,
    check_temporary_files,
    check_device,
)
