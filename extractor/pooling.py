"""How the output of a cut network becomes one vector a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import SpecError

GEM_POWER = 3.0
GEM_EPS = 1e-6


def pool(features: Tensor, pooling: str) -> Tensor:
    """Reduce the features of a batch to vectors, in float32.

    Over what is pooled follows from the shape, for the square inputs that patches are: tokens
    (N, L, D) over L, class token included; maps (N, C, H, W) over H and W; maps with the channels
    last (N, H, W, C), as Swin's, are those whose second and third side agree and the fourth does
    not. A vector (N, D) is left as it is.

    `gem` is the generalised mean of Radenovic et al., "Fine-tuning CNN Image Retrieval with No
    Human Annotation" (arXiv:1711.02512), with p = 3 and values below 1e-6 raised to it.

    Returns:
        float32 (N, D).
    """
    features = features.float()
    over = _spatial(features)
    if pooling in ("native", "flatten") or not over:
        return features.flatten(1)
    if pooling == "max":
        return features.amax(over)
    if pooling == "gem":
        raised = features.clamp(min=GEM_EPS).pow(GEM_POWER)
        return raised.mean(over).pow(1 / GEM_POWER)
    return features.mean(over)


def check_poolable(features: object, pooling: str, layer: str, batch: int) -> None:
    """Refuse the output of a layer that cannot become one vector a patch.

    Raises:
        SpecError: naming the layer and its shape.
    """
    if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != batch:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise SpecError(
            f"layer {layer!r} gives {got} for {batch} patches, which is not one row a patch; name "
            "another layer"
        )
    shape = tuple(features.shape[1:])
    if not features.is_floating_point():
        raise SpecError(f"layer {layer!r} gives {features.dtype}, not numbers to compare by")
    if pooling in ("max", "gem", "avg") and features.ndim > 4:
        raise SpecError(f"layer {layer!r} gives {shape} a patch; pool it by 'flatten'")
    if pooling in ("max", "gem") and features.ndim == 2:
        raise SpecError(
            f"layer {layer!r} gives vectors of {shape[0]} already, nothing to pool by "
            f"{pooling!r}; leave the pooling out"
        )


def _spatial(features: Tensor) -> tuple[int, ...]:
    if features.ndim == 3:
        return (1,)
    if features.ndim == 4:
        _, second, third, fourth = features.shape
        return (1, 2) if second == third != fourth else (2, 3)
    return ()


def finite(features: Tensor) -> bool:
    """Tell whether every number is finite."""
    return bool(torch.isfinite(features).all())
