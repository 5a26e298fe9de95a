"""`POST /v1/search`: the same answers as everywhere, whichever way a question comes."""

import io
import json
import time

import httpx
import numpy as np
import pytest
from fastapi import Response
from PIL import Image

from db.aliases import promote
from db.prune import remove_spec
from db.search import SearchOptions, find_patch, search, search_many
from extractor.backbone import resolve
from extractor.spec import Recipe
from patchstore import query
from patchstore.api import search as api_search
from patchstore.api.embedder import BatchingEmbedder
from patchstore.api.settings import ServeSettings
from patchstore.query import ImageQuestion, ask
from patchstore.store import register


def asked(http: httpx.Client, **body: object) -> dict:
    answer = http.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked_by_picture(http: httpx.Client, content: bytes, **fields: object) -> dict:
    answer = http.post("/v1/search", files={"image": ("a.png", content)}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def found(answer: dict) -> list[tuple[int, float]]:
    return [(hit["patch_id"], hit["distance"]) for hit in answer["hits"]]


def test_a_vector_gets_the_hits_of_the_sql_function(http, shelf) -> None:
    vector = find_patch(shelf.engine, shelf.spec, shelf.ids["1.png"], 24, 0).vector
    hits = search(shelf.engine, shelf.spec, vector, SearchOptions(7)).hits
    answer = asked(http, vector=vector.tolist(), k=7)
    assert found(answer) == [(hit.patch_id, hit.distance) for hit in hits]
    assert (answer["spec"], answer["metric"], answer["exact"]) == ("tiny", "cosine", True)


def test_a_stored_patch_is_asked_for_by_its_id_or_its_place(http, shelf) -> None:
    patch = find_patch(shelf.engine, shelf.spec, shelf.ids["1.png"], 24, 0)
    uri = str(shelf.path("1.png"))
    answers = [
        asked(http, patch_id=patch.patch_id),
        asked(http, place={"image_id": patch.image_id, "x": 24, "y": 0}),
        asked(http, place={"uri": uri, "x": 24, "y": 0}),
    ]
    assert answers[0] == answers[1] == answers[2]
    question = answers[0]["question"]
    assert (question["patch_id"], question["box"]) == (patch.patch_id, [24, 0, 48, 48])
    assert answers[0]["hits"][0]["uri"] == uri
    assert answers[0]["hits"][0]["distance"] == pytest.approx(0, abs=1e-6)


def test_a_region_gets_the_hits_of_the_command(http, shelf) -> None:
    content = shelf.content("2.png")
    expected, answer = ask(
        shelf.engine, shelf.spec, ImageQuestion(content, (24, 24, 48, 48)), SearchOptions(5)
    )
    got = asked_by_picture(http, content, region="24,24,48,48", k=5, with_vector=True)
    assert [hit["patch_id"] for hit in got["hits"]] == [hit.patch_id for hit in answer.hits]
    np.testing.assert_allclose(got["question"]["vector"], expected.vector, atol=1e-6)
    question = got["question"]
    assert (question["width"], question["height"]) == (96, 80)
    assert question["image_ids"] == [shelf.ids["2.png"]]


def test_a_whole_picture_is_asked_about_without_a_region(http, shelf) -> None:
    answer = asked_by_picture(http, shelf.content("0.png"))
    assert answer["question"]["box"] == [0, 0, 96, 80]


def test_the_vector_of_an_answer_asks_the_same_question(http, shelf) -> None:
    first = asked_by_picture(http, shelf.content("0.png"), with_vector=True)
    again = asked(http, vector=first["question"]["vector"])
    assert [hit["patch_id"] for hit in again["hits"]] == [hit["patch_id"] for hit in first["hits"]]


def test_other_images_leaves_out_the_picture_that_was_sent(http, shelf) -> None:
    answer = asked_by_picture(http, shelf.content("0.png"), other_images=True, k=50)
    assert {hit["image_id"] for hit in answer["hits"]} == {
        image for name, image in shelf.ids.items() if name != "0.png"
    }


def test_images_are_ranked_once_each(http, shelf) -> None:
    answer = asked(http, patch_id=1, by="image")
    assert sorted(hit["image_id"] for hit in answer["hits"]) == sorted(shelf.ids.values())


def test_every_patch_of_an_image_has_its_distance(http, shelf) -> None:
    image = shelf.ids["3.png"]
    answer = asked(http, patch_id=1, image_ids=[image], k=10_000, exact=True)
    assert len(answer["hits"]) == 9
    assert {hit["image_id"] for hit in answer["hits"]} == {image}


def test_only_hits_that_touch_a_box_come_back(http) -> None:
    answer = asked(http, patch_id=1, touching=[0, 0, 1, 1], k=50)
    assert {tuple(hit["box"][:2]) for hit in answer["hits"]} == {(0, 0)}


def test_merged_hits_do_not_overlap_and_are_still_k(http) -> None:
    answer = asked(http, patch_id=1, merge=True, k=8)
    boxes = [(hit["image_id"], *hit["box"]) for hit in answer["hits"]]
    assert len(boxes) == 8
    for n, (image, x, y, w, h) in enumerate(boxes):
        for other, x2, y2, w2, h2 in boxes[:n]:
            across = min(x + w, x2 + w2) - max(x, x2)
            down = min(y + h, y2 + h2) - max(y, y2)
            shared = max(across, 0) * max(down, 0)
            assert image != other or shared <= 0.3 * (w * h + w2 * h2 - shared)


def test_the_image_that_shows_a_region_in_the_same_arrangement_comes_first(http, shelf) -> None:
    answer = asked_by_picture(http, shelf.content("3.png"), consistent=True)
    first = answer["hits"][0]
    assert first["image_id"] == shelf.ids["3.png"]
    assert first["matched"] == 9
    assert first["box"] == [0, 0, 96, 80]


def test_images_are_ranked_by_arrangement_beyond_those_whose_patches_are_all_nearer(
    http, shelf, monkeypatch
) -> None:
    monkeypatch.setattr(query, "HITS_A_PART", 2)
    monkeypatch.setattr(query, "MOST_HITS_A_PART", 2)
    region = {"region": "0,0,48,48", "consistent": True}
    answer = asked_by_picture(http, shelf.content("3.png"), k=4, **region)
    assert len({hit["image_id"] for hit in answer["hits"]}) == 4


@pytest.mark.parametrize("k", [3, 4, 5])
def test_how_many_patches_of_an_image_agree_does_not_depend_on_how_many_images_are_asked_for(
    http, shelf, monkeypatch, k: int
) -> None:
    monkeypatch.setattr(query, "HITS_A_PART", 2)
    monkeypatch.setattr(query, "MOST_HITS_A_PART", 2)
    picture = shelf.content("3.png")
    hits = asked_by_picture(http, picture, k=k, consistent=True)["hits"]
    for hit in hits:
        only = {"image_ids": json.dumps([hit["image_id"]]), "consistent": True}
        (alone,) = asked_by_picture(http, picture, k=1, **only)["hits"]
        assert (hit["matched"], hit["box"]) == (alone["matched"], alone["box"])
    assert [hit["matched"] for hit in hits] == sorted((h["matched"] for h in hits), reverse=True)


def test_a_question_that_was_given_up_on_asks_the_store_no_further(
    shelf, serve, monkeypatch, wait_until
) -> None:
    rounds, ended = [], []

    def slow(*arguments: object) -> list:
        rounds.append(arguments)
        time.sleep(0.6)
        return search_many(*arguments)

    def whole(*arguments: object) -> Response:
        try:
            return answer_picture(*arguments)
        finally:
            ended.append(1)

    answer_picture = api_search._answer_picture
    monkeypatch.setattr(query, "search_many", slow)
    with serve(shelf.engine, ServeSettings(api_request_timeout_s=0.5)) as url:
        httpx.post(f"{url}/v1/search", json={"patch_id": 1})
        monkeypatch.setattr(api_search, "_answer_picture", whole)
        picture = {"image": ("a.png", shelf.content("0.png"))}
        sent = httpx.post(f"{url}/v1/search", files=picture, data={"consistent": True, "k": 50})
        wait_until(lambda: ended)
    assert (sent.status_code, len(rounds)) == (504, 1)


def test_merging_that_sees_no_more_patches_does_not_say_exact(http, monkeypatch) -> None:
    monkeypatch.setattr(query, "MAX_K", 10)
    assert asked(http, patch_id=1, merge=True, k=10)["exact"] is False


def test_a_patch_of_a_spec_that_has_gone_is_not_found(own_shelf, serve) -> None:
    with serve(own_shelf.engine) as url:
        assert httpx.post(f"{url}/v1/search", json={"patch_id": 1}).status_code == 200
        remove_spec(own_shelf.engine, own_shelf.spec)  # the service knows it for a while
        answer = httpx.post(f"{url}/v1/search", json={"patch_id": 1})
    assert (answer.status_code, answer.json()["rule"]) == (404, "patch_unknown")


def test_where_no_spec_is_the_default_one_must_be_chosen(own_shelf, serve) -> None:
    register(
        own_shelf.engine,
        "other",
        resolve(Recipe("squeezenet1_1", "random:0", patch_size=32, stride=32)),
    )
    with serve(own_shelf.engine) as url:
        answer = httpx.post(f"{url}/v1/search", json={"patch_id": 1})
    assert (answer.status_code, answer.json()["rule"]) == (404, "spec_unknown")
    assert answer.json()["detail"].endswith("; choose one of other, tiny")


def test_a_path_that_ends_otherwise_is_sent_nowhere(http) -> None:
    answer = http.post("/v1/search/", json={"patch_id": 1}, headers={"Host": "localhost"})
    assert (answer.status_code, answer.json()["rule"]) == (404, "route_unknown")


def test_a_vector_of_a_hit_with_a_prefix_is_of_that_file(http, shelf) -> None:
    uri = str(shelf.path("2.png"))
    answer = asked(http, patch_id=1, prefix=uri, k=50)
    assert {hit["uri"] for hit in answer["hits"]} == {uri}
    assert len(answer["hits"]) == 9


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


DIM = 512


@pytest.mark.parametrize(
    ("status", "rule", "body"),
    [
        (422, "query_dim", {"vector": [1.0, 2.0]}),
        (422, "query_dim", {"vector": []}),
        (422, "query_dim", {"vector": [1.0] * 16_001}),
        (422, "query_zero", {"vector": [0.0] * DIM}),
        (422, "query_finite", {"vector": [1e300] * DIM}),
        (404, "spec_unknown", {"patch_id": 1, "spec": "none"}),
        (404, "patch_unknown", {"patch_id": 10**9}),
        (404, "patch_unknown", {"place": {"uri": "/gone.jpg", "x": 0, "y": 0}}),
        (422, "k_range", {"patch_id": 1, "k": 0}),
        (422, "k_range", {"patch_id": 1, "k": 10_001}),
        (422, "ef_search_range", {"patch_id": 1, "ef_search": 0}),
        (422, "box_range", {"patch_id": 1, "touching": [0, 0, 0, 5]}),
        (422, "filter_object", {"patch_id": 1, "filter": [1]}),
        (422, "filter_object", {"patch_id": 1, "filter": {"a": "\0"}}),
        (422, "other_images_of_vector", {"vector": [1.0] * DIM, "other_images": True}),
        (422, "request_invalid", {}),
        (422, "request_invalid", {"patch_id": 1, "vector": [1.0]}),
        (422, "request_invalid", {"patch_id": 1, "vector": None}),
        (422, "request_invalid", {"patch_id": 1, "kk": 3}),
        (422, "request_invalid", {"patch_id": 1, "region": [0, 0, 9, 9]}),
        (422, "arrangement_of_vector", {"patch_id": 1, "consistent": True}),
        (422, "request_invalid", {"patch_id": 1, "prefix": "\0"}),
        (422, "request_invalid", {"patch_id": "1"}),
    ],
)
def test_a_wrong_question_is_refused_by_its_rule(http, status, rule, body) -> None:
    refused(http.post("/v1/search", json=body), status, rule)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"patch_id": "1"}, "patch_id"),
        ({"place": {"image_id": 0, "x": 1, "y": 1}}, "place.image_id"),
        ({"patch_id": 1, "image_ids": [1, "2"]}, "image_ids.1"),
    ],
)
def test_a_wrong_field_is_called_what_the_caller_called_it(http, body, field) -> None:
    (error,) = http.post("/v1/search", json=body).json()["errors"]
    assert error["field"] == field


@pytest.mark.parametrize(
    ("status", "rule", "content"),
    [
        (422, "query_finite", b'{"vector": [NaN, 1]}'),
        (400, "body_invalid", b'{"vector": '),
        (400, "body_invalid", b"\xff\xfe"),
    ],
)
def test_what_is_no_json_is_refused(http, status, rule, content) -> None:
    answer = http.post("/v1/search", content=content, headers={"content-type": "application/json"})
    refused(answer, status, rule)


@pytest.mark.parametrize(
    ("status", "rule", "content", "fields"),
    [
        (415, "image_unreadable", b"words", {}),
        (415, "image_unreadable", png(50, 50)[:60], {}),
        (422, "image_empty", b"", {}),
        (422, "image_too_small", png(5, 50), {}),
        (413, "image_too_large", png(8_000, 8_000), {}),
        (422, "region_outside", png(50, 50), {"region": "10,10,50,50"}),
        (422, "image_too_small", png(50, 50), {"region": "10,10,4,4"}),
        (422, "box_range", png(50, 50), {"region": "ten"}),
        (422, "box_range", png(50, 50), {"region": "-1,0,9,9"}),
        (422, "k_range", png(50, 50), {"k": "0"}),
        (422, "filter_object", png(50, 50), {"filter": "{"}),
        (422, "filter_object", png(50, 50), {"filter": "[]"}),
        (422, "request_invalid", png(50, 50), {"colour": "red"}),
    ],
)
def test_a_wrong_picture_is_refused_by_its_rule(http, status, rule, content, fields) -> None:
    answer = http.post("/v1/search", files={"image": ("a.png", content)}, data=fields)
    refused(answer, status, rule)


def test_a_form_without_a_picture_is_refused(http) -> None:
    refused(http.post("/v1/search", files={"k": (None, "3")}), 422, "image_missing")
    refused(http.post("/v1/search", files={"image": (None, "text")}), 422, "image_missing")


def test_a_form_that_cannot_be_taken_apart_is_refused(http) -> None:
    headers = {"content-type": "multipart/form-data"}
    refused(http.post("/v1/search", content=b"k=3", headers=headers), 400, "body_invalid")


def test_another_media_type_is_refused(http) -> None:
    refused(http.post("/v1/search", data={"k": 3}), 415, "media_type_unsupported")


def test_a_spec_that_is_still_building_says_so(own_shelf, serve) -> None:
    with own_shelf.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE patchstore.extraction "
            "SET state = 'pending', patch_count = NULL, visible = false"
        )
    patch = {"patch_id": 1}
    place = {"place": {"uri": str(own_shelf.path("0.png")), "x": 0, "y": 0}}
    picture = {"image": own_shelf.content("0.png")}
    with serve(own_shelf.engine) as url:
        address = f"{url}/v1/search"
        answers = [
            httpx.post(address, json=body) for body in ({"vector": [1.0] * DIM}, patch, place)
        ]
        for answer in (*answers, httpx.post(address, files=picture)):
            refused(answer, 409, "spec_building")
            assert answer.headers["retry-after"]


def test_a_spec_that_is_still_building_is_refused_before_its_network_is_loaded(
    own_shelf, serve, monkeypatch
) -> None:
    with own_shelf.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE patchstore.extraction "
            "SET state = 'pending', patch_count = NULL, visible = false"
        )
    with serve(own_shelf.engine) as url:
        monkeypatch.setattr(BatchingEmbedder, "__call__", None)
        picture = {"image": own_shelf.content("0.png")}
        refused(httpx.post(f"{url}/v1/search", files=picture), 409, "spec_building")


def test_who_sends_too_many_pixels_is_told_the_setting_that_says_so(http) -> None:
    answer = http.post("/v1/search", files={"image": png(8_000, 8_000)})
    assert "raise PATCHSTORE_API_MAX_PIXELS" in answer.json()["detail"]


def refused(answer: httpx.Response, status: int, rule: str) -> None:
    """A problem document with one line that says what was wrong."""
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    ), answer.text
    problem = json.loads(answer.text)
    assert (problem["status"], problem["rule"]) == (status, rule)
    assert problem["type"] == f"/problems/{rule}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"]
    assert "\n" not in problem["detail"]


def test_an_alias_is_asked_for_like_a_spec_and_the_answer_names_the_spec(own_shelf, serve) -> None:
    promote(own_shelf.engine, own_shelf.spec, "live")
    patch = find_patch(own_shelf.engine, own_shelf.spec, own_shelf.ids["1.png"], 24, 0)
    with serve(own_shelf.engine) as url, httpx.Client(base_url=url, timeout=60) as http:
        by_alias, by_name = (asked(http, spec=s, patch_id=patch.patch_id) for s in ("live", "tiny"))
    assert by_alias == by_name
    assert by_alias["spec"] == "tiny"
