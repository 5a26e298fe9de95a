"""The `patchstore` command: reads arguments, calls a room, prints.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from .main import main, start

__all__ = ["main", "start"]
