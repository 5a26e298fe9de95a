"""The recipe of a feature vector: what a user asks for, and what it becomes for good."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .grid import EdgePolicy

Pooling = Literal["native", "avg", "max", "gem", "flatten"]
Metric = Literal["cosine", "l2", "ip"]
Mode = Literal["exact", "dense"]
PENULTIMATE = "penultimate"


class FeatureSpec(BaseModel):
    """The immutable recipe of a vector: two vectors may be compared when their digests are equal.

    Device, batch size and precision are no part of it: they do not change what a vector means.

    Attributes:
        backbone: name of a torchvision classification network.
        weights: label of the checkpoint: an enum's name, a file's name, or ``random:SEED``.
        weights_sha256: of the tensors of the cut network, see `extractor.weights.tensor_digest`.
        layer: ``penultimate`` (what enters the last classifier layer) or a node's name.
        pooling: how a feature map becomes a vector; ``native`` is the network's own way.
        patch_size: side of a patch at scale 1, in pixels of the upright image.
        stride: step between patches at scale 1, in the same pixels.
        edge: what happens at the right and bottom edges, see `extractor.grid`.
        scales: at which the image is seen.
        input_size: side that a window is resized to before the network; None: `patch_size`.
        mode: ``exact``, every patch by itself; ``dense``, pooled from one pass over the image, see
            `extractor.dense`.
        foreground: filter of patches; none yet.
        mean: of the normalisation, for values in 0..1.
        std: of the normalisation, for values in 0..1.
        metric: ``cosine`` vectors are L2-normalised.
        dim: length of the vector.
        recipe: version of our own preprocessing, raised when the code changes what a vector means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str
    weights: str
    weights_sha256: str
    layer: str = PENULTIMATE
    pooling: Pooling = "native"
    patch_size: int = Field(default=224, ge=1)
    stride: int = Field(default=112, ge=1)
    edge: EdgePolicy = "cover"
    scales: tuple[float, ...] = (1.0,)
    input_size: int | None = Field(default=None, ge=1)
    mode: Mode = "exact"
    foreground: Literal["none"] = "none"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    metric: Metric = "cosine"
    dim: int = Field(ge=1)
    recipe: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    @property
    def side(self) -> int:
        """Side of what the network sees, in pixels."""
        return self.input_size or self.patch_size

    def canonical_json(self) -> str:
        """Write the recipe in the one way that is hashed: sorted keys, no spaces, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Recipe:
    """What a user asks for; `extractor.backbone.resolve` makes a `FeatureSpec` of it.

    Attributes:
        backbone: name of a torchvision classification network.
        weights: an enum's name, ``DEFAULT``, the path of a file, or ``random:SEED``.
        layer: ``penultimate`` or a node's name.
        pooling: ``avg``, ``max``, ``gem`` or ``flatten`` for a layer; None: ``native``, or ``avg``.
        patch_size: side of a patch, in pixels of the upright image.
        stride: step between patches, in pixels of the upright image.
        edge: ``drop``, ``cover`` or ``pad``.
        scales: at which the image is seen.
        input_size: side that a patch is resized to; None: as the network needs it.
        metric: ``cosine``, ``l2`` or ``ip``.
        mode: ``exact`` or ``dense``.
    """

    backbone: str = "resnet18"
    weights: str = "IMAGENET1K_V1"
    layer: str = PENULTIMATE
    pooling: str | None = None
    patch_size: int = 224
    stride: int = 112
    edge: str = "cover"
    scales: tuple[float, ...] = (1.0,)
    input_size: int | None = None
    metric: str = "cosine"
    mode: str = "exact"
