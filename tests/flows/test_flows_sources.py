"""What a folder gives: every image, nothing else, and never silence about a file."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extractor.files import file_status
from extractor.images import DEFAULT_MAX_PIXELS, read_size
from extractor.uris import path_of, uri_of
from flows.errors import SourceError
from flows.scan import look
from flows.sources import FolderSource


def names(source: FolderSource) -> list[str]:
    return [Path(file.uri).name for file in source.files()]


def test_images_are_found_in_a_stable_order_in_every_subfolder(folder: Path) -> None:
    for name in ("b.jpg", "a.PNG", "deep/er/c.tif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert names(FolderSource(folder)) == ["a.PNG", "b.jpg", "c.tif"]


def test_files_that_are_no_images_are_counted_and_left_out(folder: Path) -> None:
    for name in ("readme.txt", "data.csv", ".hidden.jpg", "a.jpg"):
        (folder / name).write_bytes(b"x")
    source = FolderSource(folder)
    assert names(source) == ["a.jpg"]
    assert source.others == 2


def test_an_image_that_no_decoder_reads_counts_so_that_it_can_fail_with_a_reason(
    folder: Path,
) -> None:
    for name in ("camera.DNG", "phone.heic"):
        (folder / name).write_bytes(b"x")
    assert names(FolderSource(folder)) == ["camera.DNG", "phone.heic"]


def test_a_file_without_suffix_counts_by_its_first_bytes(folder: Path) -> None:
    (folder / "scan0001").write_bytes(b"\xff\xd8\xff\xe0rest")
    for name, content in {
        "Makefile": b"all:\n",
        "letter": b"BM of today: all is well",
        "sound": b"RIFF\x24\0\0\0WAVEfmt ",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "web0001").write_bytes(b"RIFF\x24\0\0\0WEBPVP8 ")
    (folder / "bmp0001").write_bytes(b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0")
    assert names(FolderSource(folder)) == ["bmp0001", "scan0001", "web0001"]


def test_a_dangling_link_is_reported_and_not_dropped(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (file,) = FolderSource(folder).files()
    assert file.error == "no such file: a link that leads nowhere, or deleted just now"


def test_a_pipe_with_an_image_name_is_reported_and_never_opened(folder: Path) -> None:
    os.mkfifo(folder / "camera.jpg")
    (file,) = FolderSource(folder).files()
    assert file.error == "not a regular file"


def test_the_mark_moves_when_content_is_replaced_under_the_same_time_and_size(
    folder: Path,
) -> None:
    path = folder / "a.jpg"
    path.write_bytes(b"old")
    stat = path.stat()
    (before,) = FolderSource(folder).files()
    path.write_bytes(b"new")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (after,) = FolderSource(folder).files()
    assert before.mark != after.mark


@pytest.mark.parametrize("name", ["plain.jpg", "with space %41#?.jpg", "ünï\n.jpg"])
def test_a_uri_is_the_plain_path_and_leads_back_to_it(folder: Path, name: str) -> None:
    path = folder / name
    assert uri_of(path) == str(path)
    assert path_of(uri_of(path)) == path


def test_a_name_that_is_not_utf8_gets_a_uri_that_can_be_stored(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    uri = uri_of(path)
    assert uri.startswith("file://")
    assert uri.encode().endswith(b"/caf%E9.jpg")
    assert path_of(uri) == path


def test_a_missing_folder_and_a_file_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(
        SourceError,
        match=r"nothing does not exist; expected a folder with images \(.*: patchstore forget\)$",
    ):
        FolderSource(folder / "nothing")
    (folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"a\.jpg is a file; give the folder that holds it"):
        FolderSource(folder / "a.jpg")


def test_a_folder_that_cannot_be_listed_is_noted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    source = FolderSource(folder)
    monkeypatch.setattr(os, "scandir", refuse)
    assert names(source) == []
    assert source.unlisted == [f"{folder / 'locked'}: Permission denied"]


def test_a_folder_that_is_removed_while_others_are_read_is_gone(folder: Path) -> None:
    (folder / "deep").mkdir()
    source = FolderSource(folder)
    for removed, unlisted in ((folder / "deep", 0), (folder, 1)):
        source._note_unlisted(FileNotFoundError(2, "No such file or directory", str(removed)))
        assert len(source.unlisted) == unlisted


def test_an_unlisted_folder_whose_name_is_no_text_is_named_by_its_uri(folder: Path) -> None:
    source = FolderSource(folder)
    source._note_unlisted(PermissionError(13, "Permission denied", os.fsdecode(b"/photos/caf\xe9")))
    assert source.unlisted == ["file:///photos/caf%E9: Permission denied"]


def test_the_size_of_an_image_is_known_where_the_limit_allows_it(folder: Path, paint: Any) -> None:
    paint("a.png")
    source = FolderSource(folder)
    (file,) = source.files()
    seen = [look(source, file, most) for most in (96 * 80 - 1, 96 * 80)]
    assert [each and each.width for each in seen] == [None, 96]


def test_a_file_that_is_gone_since_it_was_listed_is_no_failed_image(
    folder: Path, paint: Any
) -> None:
    source = FolderSource(paint("a.png").parent)
    (file,) = source.files()
    (folder / "a.png").unlink()
    assert look(source, file, DEFAULT_MAX_PIXELS) is None


def test_a_file_is_looked_at_without_holding_it_in_memory(
    folder: Path, paint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = paint("a.png").read_bytes()
    monkeypatch.setattr(FolderSource, "read", None)
    source = FolderSource(folder)
    (file,) = source.files()
    seen = look(source, file, DEFAULT_MAX_PIXELS)
    assert seen is not None
    assert (seen.sha256, seen.size_bytes) == (hashlib.sha256(content).digest(), len(content))
    assert (seen.width, seen.height) == read_size(content)


def test_files_that_change_places_with_their_folders_have_other_marks(folder: Path) -> None:
    for name in ("left", "right"):
        (folder / name).mkdir()
        (folder / name / "0.bmp").write_bytes(b"same")
        os.utime(folder / name / "0.bmp", ns=(0, 0))
    latest = folder / "latest.bmp"
    latest.symlink_to(folder / "left" / "0.bmp")
    left = file_status(uri_of(latest)).mark
    latest.unlink()
    latest.symlink_to(folder / "right" / "0.bmp")
    right = file_status(uri_of(latest)).mark
    times = slice(0, 1)  # the change times may differ by a tick
    assert left.split("-")[times] == right.split("-")[times]
    assert left.split("-")[-1] != right.split("-")[-1]
