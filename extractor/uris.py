"""How an image file is named: a local one by its absolute path, as fsspec writes it too; an object
of a store by its URL.

A local name that is not UTF-8 cannot be kept as text; its URI is the percent-encoded form, which
begins with `file://`.
"""

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

FILE_SCHEME = "file://"


def absolute(path: str | Path) -> Path:
    """The absolute path with links kept as they are named: `photos/current` stays that.

    `~` is a person's folder where there is such a person, and else a name as any other.
    """
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111


def uri_of(path: Path) -> str:
    """The URI of an absolute path."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return text


def path_of(uri: str) -> Path:
    """The path of a URI: the inverse of `uri_of`; takes `file://` for every file."""
    if uri.startswith(FILE_SCHEME):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE_SCHEME))))
    return Path(uri)


def is_remote(uri: str) -> bool:
    """Whether a URI names an object of a store, and no file of this machine."""
    return "://" in uri and not uri.startswith(FILE_SCHEME)


def uri_from_here(uri: str) -> str:
    """The URI of a file that is named as from the current folder; an absolute one stays, and so
    does that of another scheme."""
    if is_remote(uri):
        return uri
    return uri_of(absolute(path_of(uri)))


def prefix_from_here(prefix: str) -> str:
    """How the URIs of files begin whose names begin so, as from the current folder."""
    if is_remote(prefix):
        return prefix
    slash = "/" if prefix.endswith("/") and prefix != "/" else ""
    return uri_from_here(prefix) + slash
