"""`python -m patchstore` is the `patchstore` command."""

from patchstore.cli import start

start()
