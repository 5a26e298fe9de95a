"""What schemathesis sends where OpenAPI only names a format."""

import io
import json
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image


def picture(seed: int, width: int, height: int, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
pictures = st.builds(
    picture,
    st.integers(0, 99),
    st.integers(1, 120),
    st.integers(1, 120),
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
)
schemathesis.openapi.format(
    "json-object", st.dictionaries(st.text(max_size=5), values, max_size=3).map(json.dumps)
)
schemathesis.openapi.format("binary", pictures | st.binary(max_size=64))


@schemathesis.hook
def map_path_parameters(
    context: Any, path_parameters: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Every other well-formed id is one of an image or a patch that is there."""
    if path_parameters is None:
        return None
    for name in ("image_id", "patch_id"):
        value = path_parameters.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value % 2 and value > 4:
            path_parameters[name] = 1 + value % 4
    return path_parameters
