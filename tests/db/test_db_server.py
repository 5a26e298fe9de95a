"""The embedded server, before it is started."""

import pytest

from db.errors import ConfigurationError
from db.server import _embedded, _start_embedded


def test_a_home_with_a_space_in_its_path_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"a space in its path.*PATCHSTORE_HOME"):
        _start_embedded(tmp_path / "my home")


def test_who_starts_it_locks_a_file_of_the_home_and_not_one_of_the_machine(server, home):
    running = _embedded(home / "postgres")
    assert running._lock.path == bytes(home / "postgres.lock")
