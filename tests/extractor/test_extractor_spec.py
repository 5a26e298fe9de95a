"""A spec is immutable, and its digest is the same for the same recipe, everywhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from extractor.spec import FeatureSpec

FIELDS = {
    "backbone": "resnet18",
    "weights": "IMAGENET1K_V1",
    "weights_sha256": "ab" * 32,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "dim": 512,
}


def test_the_digest_of_a_recipe_never_changes():
    # Stored in every user's database: a change here makes all their vectors strangers.
    assert FeatureSpec(**FIELDS).digest == (
        "6f635a97ae436164fbd745df0b7c5d77e00dac4366ff7d268baf713d4c152141"
    )


def test_canonical_json_is_sorted_compact_and_complete():
    spec = FeatureSpec(**FIELDS)
    text = spec.canonical_json()
    assert list(json.loads(text)) == sorted(FeatureSpec.model_fields)
    assert ": " not in text and ", " not in text and text.isascii()
    assert FeatureSpec.model_validate_json(text) == spec


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        FeatureSpec(**FIELDS).stride = 56


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"patch_size": 0},
        {"stride": 0},
        {"edge": "crop"},
        {"scales": (float("nan"),)},
        {"dim": 0},
        {"pooling": "median"},
    ],
)
def test_a_spec_of_other_or_impossible_fields_is_refused(change):
    with pytest.raises(ValidationError):
        FeatureSpec(**FIELDS | change)


@given(st.integers(1, 500), st.integers(1, 500))
def test_digests_are_equal_exactly_when_recipes_are(a, b):
    one, other = FeatureSpec(**FIELDS, stride=a), FeatureSpec(**FIELDS, stride=b)
    assert (one.digest == other.digest) == (a == b)


def test_whole_and_real_numbers_of_the_same_value_have_one_digest():
    assert FeatureSpec(**FIELDS, scales=(1,)).digest == FeatureSpec(**FIELDS).digest
