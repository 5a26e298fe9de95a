"""Recipes are immutable, and each has a partition of its own."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
from sqlalchemy import text

from db.errors import InvalidQuestion, NotFound, SpecConflict
from db.specs import (
    NewSpec,
    add_spec,
    get_spec,
    list_specs,
    record_precision,
    recorded_precision,
)

RECIPE = {"backbone": "resnet18", "stride": 112, "scales": [1.0]}
NEW = NewSpec("default", "d1", RECIPE, 512, "cosine", "IMAGENET1K_V1")


def test_a_spec_comes_back_as_it_was_added(engine):
    added = add_spec(engine, NEW)
    assert get_spec(engine, "default") == added
    assert (added.recipe, added.dim, added.metric.operator) == (RECIPE, 512, "<=>")
    assert list_specs(engine) == [added]


def test_the_same_recipe_again_only_learns_where_its_weights_are(engine):
    added = add_spec(engine, NEW)
    again = add_spec(engine, dataclasses.replace(NEW, weights_source="file:///w.pth"))
    assert again == dataclasses.replace(added, weights_source="file:///w.pth")
    assert list_specs(engine) == [again]


def test_another_recipe_under_the_name_is_refused_with_each_difference(engine):
    add_spec(engine, NEW)
    recipe = {"backbone": "resnet50", "stride": 112, "edge": "pad"}
    with pytest.raises(SpecConflict) as conflict:
        add_spec(engine, dataclasses.replace(NEW, digest="d2", recipe=recipe, dim=2048))
    message = str(conflict.value)
    assert "backbone: 'resnet18' in the store, 'resnet50' now" in message
    assert "edge: None in the store, 'pad' now" in message
    assert "scales: [1.0] in the store, None now" in message
    assert "stride" not in message
    assert get_spec(engine, "default").digest == "d1"


def test_an_unknown_metric_is_refused_with_the_known_ones(engine):
    with pytest.raises(InvalidQuestion, match="'hamming' is unknown; one of cosine, l2, ip"):
        add_spec(engine, dataclasses.replace(NEW, metric="hamming"))


@pytest.mark.parametrize("dim", [0, -1, 16_001])
def test_a_dimension_that_cannot_be_stored_is_refused(engine, dim):
    with pytest.raises(InvalidQuestion, match=f"vector of {dim} dimensions cannot be stored"):
        add_spec(engine, dataclasses.replace(NEW, dim=dim))
    assert list_specs(engine) == []


@pytest.mark.parametrize("dim", [1, 16_000])
def test_the_smallest_and_the_largest_vectors_are_stored(store, dim):
    spec = store.spec("edge", dim=dim)
    store.load(spec, {"a": np.ones((2, dim), np.float32)})
    assert store.shown_vectors(spec).shape == (2, dim)


def test_an_unknown_spec_is_not_found_and_the_known_ones_are_named(engine):
    with pytest.raises(NotFound, match="none yet; add one with: patchstore spec add"):
        get_spec(engine, "x")
    add_spec(engine, NEW)
    with pytest.raises(NotFound, match=r'no spec named "x"; known: default$'):
        get_spec(engine, "x")


def test_two_adders_at_once_add_one_spec(engine):
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(lambda _: add_spec(engine, NEW), range(4)))
    assert len({spec.id for spec in added}) == 1
    assert len(list_specs(engine)) == 1


def test_two_recipes_at_once_under_one_name_leave_one(engine):
    def add(digest):
        try:
            return add_spec(engine, dataclasses.replace(NEW, digest=digest, recipe={"x": digest}))
        except SpecConflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        added = [spec for spec in pool.map(add, "abcd") if spec is not None]
    assert [spec.digest for spec in list_specs(engine)] == [spec.digest for spec in added]


INSERT = (
    "INSERT INTO patchstore.patch_feature (spec_id, image_id, x, y, width, height, scale, "
    "embedding) VALUES (:spec, 1, 0, 0, 8, 8, 1, CAST(:vector AS vector))"
)


def test_a_partition_refuses_a_vector_of_another_dimension(store):
    spec = store.spec()
    with store.engine.begin() as connection:
        driver = connection.connection.driver_connection
        with pytest.raises(psycopg.errors.CheckViolation) as refusal:
            driver.execute(
                f"INSERT INTO {spec.partition} (spec_id, image_id, x, y, width, height, scale, "
                "embedding) VALUES (1, 1, 0, 0, 8, 8, 1, '[1,2,3,4,5]')"
            )
        assert (refusal.value.sqlstate, refusal.value.diag.constraint_name) == ("23514", "ck_dim")
        driver.rollback()


def test_a_vector_without_a_spec_is_refused(store):
    with store.engine.connect() as connection, pytest.raises(Exception, match="no partition"):
        connection.execute(text(INSERT), {"spec": 999, "vector": "[1,2,3,4]"})


def test_a_name_with_a_nul_byte_is_refused_in_one_line(engine):
    with pytest.raises(InvalidQuestion, match="NUL"):
        add_spec(engine, dataclasses.replace(NEW, name="a\x00b"))


@pytest.mark.parametrize("name", ['it\'s "quoted"', "100% :x %s", "new\nline", "{brace}", "日本"])
def test_any_other_name_is_kept(engine, name):
    assert get_spec(engine, add_spec(engine, dataclasses.replace(NEW, name=name)).name).name == name


def test_the_first_precision_recorded_for_a_kind_of_device_stands(store):
    spec = store.spec()

    def record(precision, kind="cpu"):
        return record_precision(
            store.engine, spec, device_kind=kind, precision=precision, min_cosine=0.9999, detail=""
        )

    assert recorded_precision(store.engine, spec, "cpu") is None
    assert record("bf16") == "bf16"
    assert record("float32") == "bf16"
    assert record("fp16", "cuda") == "fp16"
    assert recorded_precision(store.engine, spec, "cpu") == "bf16"
