"""The embedded server, before it is started."""

import fcntl
import os

import pytest

from db.errors import ConfigurationError
from db.server import FolderLock, _embedded, _start_embedded


def test_a_home_with_a_space_in_its_path_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"a space in its path.*PATCHSTORE_HOME"):
        _start_embedded(tmp_path / "my home")


def test_who_starts_it_locks_the_home_and_not_a_file_of_the_machine(server, home):
    running = _embedded(home / "postgres")
    assert running._lock.folder == home


def test_who_locks_a_folder_has_it_alone_and_leaves_nothing_in_it(tmp_path):
    other = os.open(tmp_path, os.O_RDONLY)
    with FolderLock(tmp_path), pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert list(tmp_path.iterdir()) == []
