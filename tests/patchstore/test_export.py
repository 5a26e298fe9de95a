"""A file that a command writes appears under its name when it is whole."""

from pathlib import Path

import pytest

from patchstore.errors import PatchstoreError
from patchstore.export import whole_file


def test_a_file_appears_when_it_is_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "matrix.npz"
    with whole_file(target) as partial:
        partial.write_bytes(b"whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.npz"]


def test_what_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "matrix.npz"
    target.write_bytes(b"old")
    with pytest.raises(PatchstoreError, match="No space left"), whole_file(target) as partial:
        partial.write_bytes(b"ha")
        raise OSError(28, "No space left on device")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"matrix.npz": b"old"}


def test_two_that_write_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "matrix.npz"
    with whole_file(target) as late:
        late.write_bytes(b"la")
        with whole_file(target) as early:
            early.write_bytes(b"early")
        assert target.read_bytes() == b"early"
        late.write_bytes(b"late")
    assert target.read_bytes() == b"late"


def test_of_a_link_the_file_is_written_that_it_leads_to(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "matrix.npz", tmp_path / "link.npz"
    target.parent.mkdir()
    link.symlink_to(target)
    with whole_file(link) as partial:
        partial.write_bytes(b"whole")
    assert link.is_symlink()
    assert target.read_bytes() == b"whole"
