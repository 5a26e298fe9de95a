"""A program asks the running service by the client."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pydantic import SecretStr
from sqlalchemy import Engine

from db.specs import StoredSpec
from patchstore.api.app import create_app
from patchstore.api.server import make_server
from patchstore.api.settings import ServeSettings
from patchstore.cli.serve import listen
from patchstore.client import (
    ConnectionFailed,
    NotFound,
    NotReady,
    PatchstoreClient,
    ProblemError,
    Unauthorized,
)

NAMES = ["0.png", "1.png", "2.png"]


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[str]:
    """The URL of a service over a store."""
    listener = listen("127.0.0.1", 0)
    server = make_server(create_app(engine, ServeSettings(**settings)))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def ingested(command: Any, paint: Any, spec: StoredSpec, folder: Path) -> Path:
    """Three pictures of nine patches each in the store."""
    for number, name in enumerate(NAMES):
        paint(name, number)
    assert command("ingest", folder, "--spec", "tiny", "--precision", "float32").code == 0
    return folder


@pytest.fixture
def client(store: Engine, ingested: Path) -> Iterator[PatchstoreClient]:
    with serving(store) as url, PatchstoreClient(url) as client:
        yield client


def test_every_kind_of_question_finds_the_same_patch(
    client: PatchstoreClient, ingested: Path
) -> None:
    path, box = ingested / "1.png", (24, 0, 48, 48)
    asked = client.search(image=path, region=box, with_vector=True)
    first = asked.hits[0]
    assert (first.uri, first.box) == (str(path), box)
    assert (asked.spec, asked.metric, asked.exact) == ("tiny", "cosine", True)
    assert (asked.question.box, asked.question.width, asked.question.height) == (box, 96, 80)
    assert asked.question.image_ids == (first.image_id,)
    vector = np.array(asked.question.vector, np.float32)
    for question in (
        {"vector": vector},
        {"vector": vector.tolist()},
        {"patch_id": first.patch_id},
        {"place": (str(path), 24, 0)},
        {"place": (first.image_id, 44, 20)},
        {"image": path.read_bytes(), "region": box},
        {"image": BytesIO(path.read_bytes()), "region": box},
    ):
        again: Any = client.search(**question, k=3)
        assert len(again.hits) == 3
        assert again.hits[0].patch_id == first.patch_id


def test_options_narrow_the_answer(client: PatchstoreClient, ingested: Path) -> None:
    path = ingested / "1.png"
    for question in ({"image": path}, {"place": (str(path), 0, 0)}):
        hits = client.search(**question, k=18, other_images=True).hits  # type: ignore[arg-type]
        assert {Path(hit.uri).name for hit in hits} == {"0.png", "2.png"}
    third = next(image for image in client.images(prefix=str(ingested / "2")))
    place = (str(path), 0, 0)
    by_id = client.search(place=place, image_ids=[third.image_id], touching=(0, 0, 10, 10))
    assert {hit.image_id for hit in by_id.hits} == {third.image_id}
    assert all(hit.box[0] < 10 and hit.box[1] < 10 for hit in by_id.hits)
    assert client.search(place=place, max_distance=1e-6).hits[0].box == (0, 0, 48, 48)
    by_image = client.search(image=path, by="image", ef_search=40, exact=True)
    assert sorted(Path(hit.uri).name for hit in by_image.hits) == NAMES
    merged = client.search(place=place, k=100, merge=True)
    assert 0 < len(merged.hits) < 27
    agreed = client.search(image=path, consistent=True).hits[0]
    assert (agreed.uri, agreed.matched) == (str(path), 9)


def test_metadata_that_is_set_is_found(client: PatchstoreClient, ingested: Path) -> None:
    images = list(client.images())
    assert sorted(Path(image.uri).name for image in images) == NAMES
    assert images[0].first_seen.tzinfo is not None
    changed = client.set_metadata(images[2].image_id, {"shelf": 3, "tags": ["a"]})
    assert changed.metadata == {"shelf": 3, "tags": ["a"]}
    assert client.image(images[2].image_id) == changed
    assert list(client.images(filter={"tags": ["a"]})) == [changed]
    hits = client.search(image=ingested / "0.png", filter={"shelf": 3}).hits
    assert {hit.image_id for hit in hits} == {images[2].image_id}


def test_what_is_in_the_store_can_be_looked_at(client: PatchstoreClient) -> None:
    (spec,) = client.specs()
    assert (spec.name, spec.images, spec.patches, spec.failed) == ("tiny", 3, 27, 0)
    assert client.stats()["images"] == 3
    image = next(client.images())
    patches = client.patches(image.image_id, spec="tiny")
    assert [patch.box[:2] for patch in patches[:4]] == [(0, 0), (24, 0), (48, 0), (0, 24)]
    with Pillow.open(BytesIO(client.picture(image.image_id, side=48))) as picture:
        assert picture.size == (48, 40)
    with Pillow.open(BytesIO(client.thumbnail(patches[0].patch_id, side=16))) as thumbnail:
        assert thumbnail.size == (16, 16)


def test_refusals_are_errors_by_kind(client: PatchstoreClient) -> None:
    with pytest.raises(NotFound) as unknown:
        client.search(patch_id=1, spec="none")
    assert (unknown.value.status, unknown.value.rule) == (404, "spec_unknown")
    assert "known: tiny" in str(unknown.value)
    assert unknown.value.request_id
    with pytest.raises(ProblemError) as wrong:
        client.search(vector=[1.0, 2.0])
    assert (type(wrong.value), wrong.value.rule) == (ProblemError, "query_dim")
    with pytest.raises(NotFound):
        client.image(10**9)


def test_a_spec_that_is_building_says_when_to_ask_again(
    store: Engine, building: StoredSpec
) -> None:
    with serving(store) as url, PatchstoreClient(url) as client, pytest.raises(NotReady) as early:
        client.search(vector=np.ones(building.dim))
    assert (early.value.status, early.value.rule) == (409, "spec_building")
    assert early.value.retry_after_s is not None


def test_a_token_is_asked_for_and_its_scope_counts(store: Engine, ingested: Path) -> None:
    tokens = SecretStr("read:0123456789abcdef admin:fedcba9876543210")
    with serving(store, api_tokens=tokens) as url:
        with PatchstoreClient(url) as nobody, pytest.raises(Unauthorized) as refused:
            nobody.specs()
        assert refused.value.status == 401
        with PatchstoreClient(url, token="0123456789abcdef") as reader:
            image = next(reader.images())
            with pytest.raises(Unauthorized) as forbidden:
                reader.set_metadata(image.image_id, {})
        assert forbidden.value.status == 403
        with PatchstoreClient(url, token="fedcba9876543210") as admin:
            assert admin.set_metadata(image.image_id, {"a": 1}).metadata == {"a": 1}


def test_no_service_is_one_line() -> None:
    with (
        PatchstoreClient("http://127.0.0.1:9", timeout=5) as client,
        pytest.raises(ConnectionFailed) as failed,
    ):
        client.ready()
    assert "127.0.0.1:9" in str(failed.value)
    assert "\n" not in str(failed.value)
