"""Looking at what is in the store, and its pictures."""

import errno
import hashlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from db.aliases import promote, remove_alias
from patchstore.api import browse, pictures
from patchstore.api.settings import ServeSettings


def get(http: httpx.Client, path: str, **query: object) -> dict:
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(http: httpx.Client, path: str, **query: object) -> Image.Image:
    answer = http.get(path, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    return Image.open(io.BytesIO(answer.content))


def test_specs_are_listed_with_their_recipe_and_counts(http, shelf) -> None:
    (spec,) = get(http, "/v1/specs")["specs"]
    assert (spec["name"], spec["digest"], spec["dim"]) == ("tiny", shelf.spec.digest, 512)
    assert spec["recipe"] == shelf.spec.recipe
    assert (spec["images"], spec["patches"], spec["pending"], spec["failed"]) == (4, 36, 0, 0)


@pytest.fixture
def alias(shelf) -> Iterator[str]:
    promote(shelf.engine, shelf.spec, "live")
    yield "live"
    remove_alias(shelf.engine, "live")


def test_specs_are_listed_with_the_aliases_that_stand_for_them(http, alias) -> None:
    (spec,) = get(http, "/v1/specs")["specs"]
    assert spec["aliases"] == [alias]


def test_the_stats_count_the_store(http) -> None:
    stats = get(http, "/v1/stats")
    assert (stats["sources"], stats["locations"], stats["images"]) == (1, 4, 4)
    assert stats["specs"][0]["patches"] == 36


def test_pages_of_images_hold_each_image_once(http, shelf) -> None:
    seen, after = [], 0
    while after is not None:
        page = get(http, "/v1/images", limit=3, after=after)
        seen += [image["image_id"] for image in page["images"]]
        after = page["next"]
    assert seen == sorted(shelf.ids.values())


def test_the_last_page_of_images_says_so_also_where_it_is_full(http, shelf) -> None:
    assert get(http, "/v1/images", limit=len(shelf.ids))["next"] is None


def test_images_are_found_by_the_beginning_of_their_uri(http, shelf) -> None:
    uri = str(shelf.path("2.png"))
    (image,) = get(http, "/v1/images", prefix=uri)["images"]
    assert image["image_id"] == shelf.ids["2.png"]
    assert get(http, "/v1/images", prefix="/nowhere")["images"] == []


def test_images_are_listed_that_have_patches_under_a_spec(http, shelf) -> None:
    assert len(get(http, "/v1/images", spec="tiny")["images"]) == len(shelf.ids)
    unknown = http.get("/v1/images", params={"spec": "none"})
    assert (unknown.status_code, unknown.json()["rule"]) == (404, "spec_unknown")


def test_an_image_is_described(http, shelf) -> None:
    image = get(http, f"/v1/images/{shelf.ids['1.png']}")
    assert image["uri"] == str(shelf.path("1.png"))
    assert (image["width"], image["height"], image["metadata"]) == (96, 80, {})


def test_the_patches_of_an_image_come_row_by_row(http, shelf) -> None:
    answer = get(http, f"/v1/images/{shelf.ids['1.png']}/patches")
    boxes = [patch["box"] for patch in answer["patches"]]
    assert answer["spec"] == "tiny"
    assert boxes == [[x, y, 48, 48] for y in (0, 24, 32) for x in (0, 24, 48)]


def test_more_patches_than_can_be_listed_are_not_listed_in_part(http, shelf, monkeypatch) -> None:
    path = f"/v1/images/{shelf.ids['1.png']}/patches"
    for most, status in ((9, 200), (8, 422)):
        monkeypatch.setattr(browse, "MOST_PATCHES", most)
        answer = http.get(path)
        assert answer.status_code == status
    assert answer.json()["rule"] == "patches_too_many"


def test_a_thumbnail_is_cut_from_the_original(http, shelf) -> None:
    (patch, *_) = get(http, f"/v1/images/{shelf.ids['1.png']}/patches")["patches"]
    shown = picture(http, patch["thumbnail"])
    assert shown.size == (48, 48)
    original = Image.open(shelf.path("1.png")).crop((0, 0, 48, 48))
    grey = [np.asarray(image.convert("L"), dtype=float).ravel() for image in (shown, original)]
    assert np.corrcoef(*grey)[0, 1] > 0.95


def test_a_picture_is_at_most_as_large_as_asked(http, shelf) -> None:
    path = f"/v1/images/{shelf.ids['0.png']}/picture.jpg"
    assert picture(http, path).size == (96, 80)
    assert picture(http, path, side=48).size == (48, 40)


def test_a_picture_that_a_browser_has_is_not_sent_again(http, shelf) -> None:
    path = f"/v1/images/{shelf.ids['0.png']}/picture.jpg"
    first = http.get(path)
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = http.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
    smaller = http.get(path, params={"side": 32}, headers={"If-None-Match": first.headers["etag"]})
    assert smaller.status_code == 200


@pytest.mark.parametrize("spoil", ["change", "delete"])
def test_no_picture_is_shown_but_the_one_that_was_stored(own_shelf, serve, spoil) -> None:
    path = own_shelf.path("0.png")
    with serve(own_shelf.engine) as url:
        picture_url = f"{url}/v1/images/{own_shelf.ids['0.png']}/picture.jpg"
        assert httpx.get(picture_url).status_code == 200
        if spoil == "delete":
            path.unlink()
        else:
            path.write_bytes(own_shelf.content("1.png"))
        answer = httpx.get(picture_url)
    assert (answer.status_code, answer.json()["rule"]) == (404, "picture_gone")
    assert str(path) in answer.json()["detail"]


@pytest.mark.parametrize("step", ["file_status", "read_stored"])
def test_a_fault_of_the_storage_is_not_told_as_a_picture_that_is_gone(
    own_shelf, serve, monkeypatch, step
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pictures, step, fail)
    with serve(own_shelf.engine) as url:
        answer = httpx.get(f"{url}/v1/images/{own_shelf.ids['0.png']}/picture.jpg")
    assert (answer.status_code, answer.json()["rule"]) == (503, "picture_unavailable")
    assert answer.headers["retry-after"] == "5"


def test_a_disk_that_hangs_keeps_no_question_waiting(own_shelf, serve, monkeypatch) -> None:
    back = threading.Event()
    monkeypatch.setattr(pictures, "file_status", lambda _uri: back.wait(30))
    settings = ServeSettings(api_request_timeout_s=1, api_connections=2)
    with serve(own_shelf.engine, settings) as url, ThreadPoolExecutor(8) as pool:
        shown = [pool.submit(httpx.get, f"{url}/v1/patches/{n}/thumbnail.jpg") for n in range(1, 9)]
        assert {each.result().status_code for each in shown} == {504}
        answer = httpx.post(f"{url}/v1/search", json={"patch_id": 1})
        back.set()
    assert answer.status_code == 200


def test_a_picture_that_could_never_be_read_is_not_said_to_be_gone(own_shelf, serve) -> None:
    path = own_shelf.folder / "torn.png"
    path.write_bytes(own_shelf.content("0.png")[:200])
    with own_shelf.engine.begin() as connection:
        image = own_shelf.ids["3.png"]
        connection.execute(
            text("UPDATE patchstore.image_location SET uri = :uri WHERE image_id = :id"),
            {"uri": str(path), "id": image},
        )
        connection.execute(
            text("UPDATE patchstore.image SET sha256 = :sha WHERE id = :id"),
            {"sha": hashlib.sha256(path.read_bytes()).digest(), "id": image},
        )
    with serve(own_shelf.engine) as url:
        answer = httpx.get(f"{url}/v1/images/{image}/picture.jpg")
    assert (answer.status_code, answer.json()["rule"]) == (404, "picture_unreadable")


def test_metadata_that_is_set_is_what_filters_find(own_shelf, serve) -> None:
    image = own_shelf.ids["2.png"]
    with serve(own_shelf.engine) as url, httpx.Client(base_url=url) as http:
        done = http.put(f"/v1/images/{image}/metadata", json={"shelf": 3})
        assert (done.status_code, done.json()["metadata"]) == (200, {"shelf": 3})
        body = {"patch_id": 1, "filter": {"shelf": 3}, "k": 50}
        hits = http.post("/v1/search", json=body).json()["hits"]
        (found,) = get(http, "/v1/images", filter='{"shelf": 3}')["images"]
    assert {hit["image_id"] for hit in hits} == {image}
    assert hits[0]["metadata"] == {"shelf": 3}
    assert found["image_id"] == image


@pytest.mark.parametrize(("path", "status"), [("C:\\u0000", 200), ("C:\0", 422), ("\\\0", 422)])
def test_only_a_nul_itself_is_no_metadata(own_shelf, serve, path, status) -> None:
    image = own_shelf.ids["2.png"]
    with serve(own_shelf.engine) as url, httpx.Client(base_url=url) as http:
        done = http.put(f"/v1/images/{image}/metadata", json={"path": path})
    assert done.status_code == status
    assert status != 200 or done.json()["metadata"] == {"path": path}


@pytest.mark.parametrize(
    ("path", "status", "rule"),
    [
        ("/v1/images/999999", 404, "image_unknown"),
        ("/v1/images/999999/patches", 404, "image_unknown"),
        ("/v1/images/999999/picture.jpg", 404, "image_unknown"),
        ("/v1/patches/999999/thumbnail.jpg", 404, "patch_unknown"),
        ("/v1/images/1/patches?spec=none", 404, "spec_unknown"),
        ("/v1/images/zero", 422, "request_invalid"),
        ("/v1/images/0", 422, "request_invalid"),
        (f"/v1/images/{2**63}", 422, "request_invalid"),
        ("/v1/images?filter=3", 422, "filter_object"),
        (f"/v1/images?filter={'[' * 700}{']' * 700}", 422, "filter_object"),
        (f"/v1/images?filter={{%22a%22:{'[' * 700}{']' * 700}}}", 422, "filter_object"),
        ("/v1/images?limit=0", 422, "request_invalid"),
        ("/v1/images?prefix=%00", 422, "request_invalid"),
        ("/v1/images/1/picture.jpg?side=100000", 422, "request_invalid"),
        ("/v1/elsewhere", 404, "route_unknown"),
        ("/page/../app.py", 404, "route_unknown"),
    ],
)
def test_what_is_not_there_is_a_problem(http, path, status, rule) -> None:
    answer = http.get(path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["rule"]) == (status, rule)


def test_a_problem_leads_to_its_meaning(http) -> None:
    kind = http.get("/v1/images/999999").json()["type"]
    assert "No such image" in http.get(kind).text
    assert http.get("/problems/nonsense").status_code == 404
