"""What an object store gives: as a folder does, every image, and never silence about an object."""

import os
import socket
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from extractor.files import file_status, open_file
from flows.errors import SourceError
from flows.sources import Source, StoreSource, root_of, source_at

JPEG = b"\xff\xd8\xff\xe0rest"


def names(source: Source) -> list[str]:
    return [PurePosixPath(file.uri).name for file in source.files()]


def opened(url: str) -> StoreSource:
    source = source_at(url)
    assert isinstance(source, StoreSource)
    return source


def test_images_are_found_in_a_stable_order_at_every_depth(bucket: Any) -> None:
    for key in ("photos/b.jpg", "photos/a.PNG", "photos/deep/er/c.tif", "other/d.jpg"):
        bucket.put(key, b"x")
    source = source_at(f"{bucket.url}/photos/")
    assert (source.root, names(source)) == (f"{bucket.url}/photos", ["a.PNG", "b.jpg", "c.tif"])


def test_a_whole_bucket_is_a_source(bucket: Any) -> None:
    bucket.put("deep/a.jpg", b"x")
    (file,) = source_at(bucket.url).files()
    assert file.uri == f"{bucket.url}/deep/a.jpg"


def test_objects_that_are_no_images_are_counted_and_left_out(bucket: Any) -> None:
    for key in ("readme.txt", ".hidden.jpg", ".cache/b.jpg", "a.jpg"):
        bucket.put(key, b"x")
    bucket.put("folder/", b"")
    source = source_at(bucket.url)
    assert (names(source), source.others) == (["a.jpg"], 1)


def test_an_object_without_suffix_counts_by_its_first_bytes(bucket: Any) -> None:
    bucket.put("scan0001", JPEG)
    bucket.put("Makefile", b"all:\n")
    bucket.put("empty", b"")
    assert names(source_at(bucket.url)) == ["scan0001"]


def test_an_object_without_suffix_that_cannot_be_opened_is_doubtful(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("scan0001", JPEG)
    source = opened(bucket.url)
    monkeypatch.setattr(source._store, "cat_file", refuse)
    (file,) = source.files()
    assert (file.doubtful, file.error) == (True, "cannot be read: Access Denied")


@pytest.mark.parametrize("key", ["plain.jpg", "with space %41#.jpg", "ünï.jpg"])
def test_an_object_is_read_by_its_uri(bucket: Any, key: str) -> None:
    bucket.put(key, JPEG)
    source = source_at(bucket.url)
    (file,) = source.files()
    assert file.uri == f"{bucket.url}/{key}"
    with source.read(file.uri, 100) as content:
        assert content.read() == JPEG


def test_the_mark_moves_with_the_content_alone(bucket: Any) -> None:
    def mark() -> str:
        (file,) = source_at(bucket.url).files()
        assert file.mark == file_status(file.uri).mark
        return file.mark

    bucket.put("a.jpg", b"old")
    old = mark()
    bucket.put("a.jpg", b"old")
    assert mark() == old
    bucket.put("a.jpg", b"new")
    assert mark() != old


def test_a_folder_that_cannot_be_listed_is_noted_and_the_others_are_listed(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.jpg", b"x")
    bucket.put("locked/b.jpg", b"x")
    source = opened(bucket.url)
    ls = source._store.ls

    def listed(folder: str, **options: Any) -> Any:
        return refuse() if folder.endswith("locked") else ls(folder, **options)

    monkeypatch.setattr(source._store, "ls", listed)
    assert names(source) == ["a.jpg"]
    assert source.unlisted == [f"{bucket.url}/locked: Access Denied"]


def test_what_lies_below_an_empty_part_of_a_name_is_told(bucket: Any) -> None:
    for key in ("photos/a.jpg", "photos//b.jpg", "photos/deep//c.jpg"):
        bucket.put(key, b"x")
    found = {file.uri: file.error for file in source_at(f"{bucket.url}/photos").files()}
    said = "cannot be read: what is below a name with an empty part, //, is not read; rename it"
    assert found == {
        f"{bucket.url}/photos/a.jpg": None,
        f"{bucket.url}/photos//": said,
        f"{bucket.url}/photos/deep//": said,
    }


def test_an_object_that_is_listed_twice_is_one(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.jpg", b"x")
    source = opened(bucket.url)
    ls = source._store.ls
    monkeypatch.setattr(source._store, "ls", lambda *args, **more: 2 * ls(*args, **more))
    assert names(source) == ["a.jpg"]


def test_a_store_that_is_gone_halfway_has_not_lost_its_images(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.jpg", b"x")
    bucket.put("deep/b.jpg", b"x")
    source = opened(bucket.url)
    store = source._store
    ls = store.ls

    def missing(*_arguments: Any, **_options: Any) -> Any:
        raise FileNotFoundError("The specified bucket does not exist")

    def listed(folder: str, **options: Any) -> Any:
        found = ls(folder, **options)
        monkeypatch.setattr(store, "ls", missing)
        monkeypatch.setattr(store, "info", missing)
        return found

    monkeypatch.setattr(store, "ls", listed)
    assert names(source) == ["a.jpg"]
    assert source.unlisted == [f"{bucket.url}/deep: No such file or directory"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://no-such-bucket/x", "does not exist or holds nothing; expected images"),
        ("s3://", "is a whole store; give a bucket of it, or what begins in one"),
        ("nope://x", "cannot be opened: Protocol not known: nope"),
        ("simplecache::s3://x", "cannot be opened: a chain of stores is not read"),
        ("local:///photos", "is a folder of this machine; give its path, /photos"),
        ("webhdfs://one.example/photos", "names a server or an account that the URLs of its"),
    ],
)
def test_what_is_no_source_is_refused_in_words(s3: Any, place: str, said: str) -> None:
    with pytest.raises(SourceError, match=f"^{place} {said}"):
        source_at(place)


@pytest.mark.parametrize("may_be_gone", [False, True])
def test_a_store_that_cannot_be_reached_is_not_one_that_holds_nothing(may_be_gone: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    with pytest.raises(SourceError, match=r"^http://127.* cannot be listed: Cannot connect to"):
        source_at(f"http://{host}:{port}/photos", may_be_gone=may_be_gone)


def test_an_object_is_no_source(bucket: Any) -> None:
    url = bucket.put("photos/a.jpg", b"x")
    with pytest.raises(SourceError, match=r"a\.jpg is a file; give what comes before its last /"):
        source_at(url)


def test_a_source_that_may_be_gone_has_no_files(bucket: Any) -> None:
    source = source_at(f"{bucket.url}/photos", may_be_gone=True)
    assert (source.gone, list(source.files())) == (True, [])


def test_a_source_has_one_name_however_it_is_written(bucket: Any) -> None:
    assert root_of(f"{bucket.url}/photos/") == root_of(f"{bucket.url}/photos")


def test_an_object_that_is_gone_is_a_file_that_is_not_found(bucket: Any) -> None:
    with (
        pytest.raises(FileNotFoundError, match="No such file or directory"),
        open_file(f"{bucket.url}/a.jpg") as file,
    ):
        file.read()


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_its_end(
    tmp_path: Path, what: str
) -> None:
    path = tmp_path / "a.jpg"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match="not a regular file"), open_file(str(path)):
        pass


def test_a_store_that_is_lost_halfway_is_an_error_of_the_file_and_ours_stay_ours(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.put("a.jpg", b"x")
    with open_file(url) as file, pytest.raises(KeyError):
        raise KeyError
    with open_file(url) as file:
        monkeypatch.setattr("s3fs.S3File.read", refuse)
        with pytest.raises(OSError, match="Access Denied"):
            file.read()


def test_a_store_that_tells_no_changes_fails_its_images_with_that_reason(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a.jpg", "b.txt"):
        bucket.put(key, b"x")
    source = opened(bucket.url)
    ls = source._store.ls

    def bare(folder: str, **options: Any) -> list[dict[str, Any]]:
        kept = ("name", "size", "type")
        return [{key: entry[key] for key in kept} for entry in ls(folder, **options)]

    monkeypatch.setattr(source._store, "ls", bare)
    (file,) = source.files()
    assert file.error == "cannot be read: its store does not tell when an object was changed"
    assert (file.doubtful, source.others) == (False, 1)


def refuse(*_arguments: Any, **_options: Any) -> Any:
    raise PermissionError("Access Denied")
