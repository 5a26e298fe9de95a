"""A name that stands for one spec today and for another one tomorrow."""

import psycopg
import pytest

from db.aliases import list_aliases, promote, remove_alias
from db.errors import NotFound, SpecConflict, SpecIncomplete
from db.ledger import fail_image
from db.search import search
from db.specs import get_spec


@pytest.fixture
def old(store):
    spec = store.spec("old")
    store.ingest(spec, {"a": "1", "b": "2"})
    return spec


@pytest.fixture
def new(store, old):
    spec = store.spec("new", metric="l2")
    store.ingest(spec, {"a": "1", "b": "2"})
    return spec


def by_alias(store):
    """Which spec a search by the alias asks, told by its metric."""
    return store.scalar(
        "SELECT metric FROM patchstore.feature_spec WHERE id = (patchstore.find_spec('live')).id"
    )


def test_an_alias_stands_for_a_spec_wherever_its_name_may(store, old, admin):
    promote(store.engine, old, "live")
    assert get_spec(store.engine, "live") == old
    vector = "(SELECT embedding FROM patchstore.patches LIMIT 1)"
    admin.execute("SET ROLE patchstore_reader")
    hits = [
        admin.execute(f"SELECT * FROM patchstore.similar_patches('{name}', {vector})").fetchall()
        for name in ("live", "old")
    ]
    assert hits[0] == hits[1] != []


def test_searches_by_the_alias_switch_with_it_and_back(store, old, new):
    assert promote(store.engine, old, "live") is None
    assert promote(store.engine, new, "live") == "old"
    assert by_alias(store) == "l2"
    assert promote(store.engine, old, "live") == "new"
    assert by_alias(store) == "cosine"


def test_a_transaction_that_is_not_committed_switches_nothing(store, old, new, admin):
    promote(store.engine, old, "live")
    admin.execute("BEGIN; UPDATE patchstore.spec_alias SET spec_id = 2")
    assert by_alias(store) == "cosine"
    admin.execute("COMMIT")
    assert by_alias(store) == "l2"


def test_the_view_of_specs_and_the_list_tell_aliases(store, old, new):
    promote(store.engine, old, "live")
    promote(store.engine, old, "best")
    assert store.sql("SELECT name, aliases FROM patchstore.specs ORDER BY name") == [
        ("new", []),
        ("old", ["best", "live"]),
    ]
    assert list_aliases(store.engine) == {"best": "old", "live": "old"}


def test_an_unknown_name_is_told_the_aliases_too(store, old):
    promote(store.engine, old, "live")
    with pytest.raises(NotFound, match='no spec named "x"; known: live, old'):
        get_spec(store.engine, "x")


def test_a_name_is_a_spec_or_an_alias(store, old, new):
    with pytest.raises(SpecConflict, match="'new' is the name of a spec"):
        promote(store.engine, old, "new")
    promote(store.engine, old, "live")
    with pytest.raises(SpecConflict, match="'live' is an alias of a spec"):
        store.spec("live")


def test_a_spec_whose_images_are_still_computed_is_not_promoted(store, old):
    new = store.spec("new")
    store.scan(new, {"a": "1", "b": "2"})
    store.write(new, store.lease(new, images=1)[0])
    refused = r"^1 images are not computed under spec 'new' yet, such as b; run: "
    with pytest.raises(SpecIncomplete, match=refused):
        promote(store.engine, new, "live")
    assert promote(store.engine, new, "live", force=True) is None


def test_a_spec_that_never_heard_of_an_image_of_the_alias_is_not_promoted(store, old, new):
    promote(store.engine, old, "live")
    store.ingest(old, {"c": "3"}, root="file:///elsewhere")
    with pytest.raises(SpecIncomplete, match=r"^1 images are not computed"):
        promote(store.engine, new, "live")


def test_a_spec_that_never_heard_of_an_image_of_its_own_source_is_not_promoted(store, old):
    behind = store.spec("behind")
    store.ingest(behind, {"a": "1"})
    store.scan(old, {"a": "1", "z": "26"})
    with pytest.raises(SpecIncomplete, match=r"^1 images are not computed under spec 'behind'"):
        promote(store.engine, behind, "first")


def test_a_spec_without_any_vector_is_not_promoted(store):
    with pytest.raises(SpecIncomplete, match="nothing is computed under spec 'tiny' yet"):
        promote(store.engine, store.spec(), "live")


def test_images_that_failed_do_not_keep_a_spec_from_being_promoted(store, old):
    promote(store.engine, old, "live")
    new = store.spec("new")
    store.scan(new, {"a": "1", "b": "2"})
    first, second = store.lease(new)
    store.write(new, first)
    fail_image(store.engine, second, "too small")
    assert promote(store.engine, new, "live") == "old"


@pytest.mark.parametrize("now", ["3", None], ids=["changed", "unreadable"])
def test_what_files_showed_before_does_not_keep_a_spec_from_being_promoted(store, old, now):
    promote(store.engine, old, "live")
    new = store.spec("new")
    store.ingest(new, {"a": "1", "b": now})
    assert "b" in store.shown(old)
    assert promote(store.engine, new, "live") == "old"


def test_an_alias_that_is_removed_leaves_its_spec(store, old):
    promote(store.engine, old, "live")
    remove_alias(store.engine, "live")
    assert list_aliases(store.engine) == {}
    assert search(store.engine, old, store.content("1")[0]).hits


def test_a_spec_with_an_alias_cannot_be_deleted_behind_its_back(store, old, admin):
    promote(store.engine, old, "live")
    with pytest.raises(psycopg.errors.RestrictViolation):
        admin.execute("DELETE FROM patchstore.feature_spec")
