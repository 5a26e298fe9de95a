"""A torchvision network, cut where its vector is, with the weights of a recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from torchvision import models
from torchvision.models._api import WeightsEnum, get_model, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from .errors import SpecError, WeightsError, one_line
from .field import Field, cell_counter, measure_field
from .grid import EdgePolicy, check_geometry
from .network import A_LAYER, CutNetwork, DenseNetwork, fold_norms, noise, split_at_pooling
from .onnx import ExportedNetwork, export_folder, is_exported
from .pooling import check_poolable, finite
from .spec import PENULTIMATE, FeatureSpec, Metric, Mode, Pooling, Recipe
from .weights import (
    WeightsSource,
    default_entry,
    find_weights,
    load_tensors,
    read_tensors,
    tensor_digest,
    weights_place,
)

_CLASSES = 1000
_FIXED_INPUT = ("vit_", "swin_", "maxvit_")  # position embeddings and windows of a trained size
# As torchvision's own builders set them for ImageNet weights; without the slow initialisation.
_BUILD_OPTIONS: dict[str, dict[str, bool]] = {
    name: {"aux_logits": True, "transform_input": True, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A cut network, ready to run.

    Attributes:
        network: float32 (N, 3, S, S), normalised, to float32 (N, `dim`); in eval mode, parameters
            float32 and channels_last.
        dim: length of a vector.
        weights_sha256: of the tensors in use, see `extractor.weights.tensor_digest`.
        smallest: side of what the network can be given at least, in pixels.
        export_folder: where its export to other runtimes is kept; None: nowhere.
    """

    network: nn.Module
    dim: int
    weights_sha256: str
    smallest: int = 1
    export_folder: Path | None = None
    _folded: dict[int, nn.Module] = field(default_factory=dict, init=False, repr=False)
    _exported: dict[tuple[int, str], ExportedNetwork] = field(
        default_factory=dict, init=False, repr=False
    )

    def folded(self, side: int) -> nn.Module:
        """The same function of patches of S = `side`, with its batch norms folded: faster."""
        if side not in self._folded:
            self._folded[side] = fold_norms(self.network, side)
        return self._folded[side]

    def exported(self, side: int, runtime: str) -> ExportedNetwork:
        """The folded network run by another runtime than torch. Raises DeviceError."""
        if (side, runtime) not in self._exported:
            cells = self.cells if isinstance(self.network, DenseNetwork) else None
            self._exported[side, runtime] = ExportedNetwork(
                self.folded(side), side, runtime, self.export_folder, cells
            )
        return self._exported[side, runtime]

    @property
    def is_exported(self) -> bool:
        """Whether `exported` takes no time to speak of."""
        return bool(self._exported) or is_exported(self.export_folder)

    @cached_property
    def field(self) -> Field:
        """The receptive field of a dense network's cells. Raises SpecError where it has none."""
        assert isinstance(self.network, DenseNetwork)
        return measure_field(self.network.features, self.smallest)

    @cached_property
    def cells(self) -> Callable[[int], int]:
        """Tells how many cells a dense network has along a side of so many pixels."""
        assert isinstance(self.network, DenseNetwork)
        return cell_counter(self.network.features, self.field, self.smallest)


@dataclass(frozen=True, eq=False)
class ResolvedSpec:
    """A recipe made definite.

    Attributes:
        spec: what is stored.
        weights_source: where the weights are on this machine, for `load_backbone`.
        backbone: the loaded network.
    """

    spec: FeatureSpec
    weights_source: str
    backbone: Backbone


def resolve(recipe: Recipe) -> ResolvedSpec:
    """Check a recipe, load its network, and write down what it is for good.

    Raises:
        SpecError: when the recipe cannot work, told from one pass over two patches of noise.
        WeightsError: when the weights cannot be had or are of another network.
    """
    pooling = _check(recipe)
    source = find_weights(recipe.backbone, recipe.weights)
    entry = source.entry or default_entry(recipe.backbone)
    input_size = _input_size(recipe, entry)
    network, digest = _load(recipe.backbone, source, recipe.layer, pooling, recipe.mode)
    side = input_size or recipe.patch_size
    dim = _dry_run(network, recipe, side)
    backbone = Backbone(network, dim, digest, _smallest(recipe.backbone))
    if recipe.mode == "dense":
        _ = backbone.field  # refuses what cannot be dense
    preprocessing = entry.transforms()
    spec = FeatureSpec(
        backbone=recipe.backbone,
        weights=source.label,
        weights_sha256=backbone.weights_sha256,
        layer=recipe.layer,
        pooling=cast(Pooling, pooling),
        patch_size=recipe.patch_size,
        stride=recipe.stride,
        edge=cast(EdgePolicy, recipe.edge),
        scales=recipe.scales,
        input_size=input_size,
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        metric=cast(Metric, recipe.metric),
        mode=cast(Mode, recipe.mode),
        dim=backbone.dim,
    )
    return ResolvedSpec(spec, source.source, backbone)


def load_backbone(spec: FeatureSpec, weights_source: str, exports: Path | None = None) -> Backbone:
    """Load the network of a stored spec and prove that its tensors are the spec's.

    A weight file that is gone from `weights_source` is looked for by its name in
    ``$TORCH_HOME/hub/checkpoints``.

    Args:
        spec: whose network it is.
        weights_source: see `ResolvedSpec`.
        exports: folder in which exported networks are kept; None: none are.

    Raises:
        WeightsError: when the weights cannot be had, or hash to something else.
    """
    source = find_weights(spec.backbone, weights_place(spec.weights, weights_source))
    network, found = _load(spec.backbone, source, spec.layer, spec.pooling, spec.mode)
    if found != spec.weights_sha256:
        raise WeightsError(
            f"weights {source.source} of {spec.backbone} hash to {found[:12]}, the spec's to "
            f"{spec.weights_sha256[:12]}: other tensors under the same name; put the first ones "
            "back, or add a spec of another name for these"
        )
    kept = exports and export_folder(exports, spec)
    return Backbone(network, spec.dim, found, _smallest(spec.backbone), kept)


def backbone_names() -> list[str]:
    """List torchvision's classification networks, sorted."""
    names: list[str] = list_models(module=models)
    return names


def _check(recipe: Recipe) -> str:
    """Refuse what needs no network to be told, and give the pooling that is meant."""
    if recipe.backbone not in (known := backbone_names()):
        raise SpecError(
            f"backbone {recipe.backbone!r} is no classification network of torchvision; "
            f"{_closest(recipe.backbone, known)}"
        )
    check_geometry(recipe.patch_size, recipe.stride, recipe.edge, recipe.scales)
    if recipe.input_size is not None and recipe.input_size < 1:
        raise SpecError(f"input_size is {recipe.input_size}; give at least 1 pixel")
    if recipe.metric not in get_args(Metric):
        raise SpecError(f"metric is {recipe.metric!r}; give one of {', '.join(get_args(Metric))}")
    if recipe.mode not in get_args(Mode):
        raise SpecError(f"mode is {recipe.mode!r}; give one of {', '.join(get_args(Mode))}")
    pooling = _pooling(recipe)
    if recipe.mode == "dense":
        _check_dense(recipe, pooling)
    return pooling


def _check_dense(recipe: Recipe, pooling: str) -> None:
    if recipe.scales != (1.0,) or recipe.input_size is not None:
        raise SpecError(
            "the mode dense sees images as they are; leave scales and input_size out, or use the "
            "mode exact"
        )
    if pooling not in ("native", "avg", "gem"):
        raise SpecError(f"the mode dense averages, it cannot pool by {pooling!r}; give avg or gem")


def _pooling(recipe: Recipe) -> str:
    poolings = [name for name in get_args(Pooling) if name != "native"]
    if recipe.pooling is not None and recipe.pooling not in get_args(Pooling):
        raise SpecError(f"pooling is {recipe.pooling!r}; give one of {', '.join(poolings)}")
    if recipe.layer != PENULTIMATE and recipe.pooling == "native":
        raise SpecError(
            f"pooling 'native' is only for the layer {PENULTIMATE!r}; for {recipe.layer!r} give "
            f"one of {', '.join(poolings)}"
        )
    if recipe.layer == PENULTIMATE and recipe.pooling not in (None, "native"):
        raise SpecError(
            f"pooling {recipe.pooling!r} needs a layer to pool, the layer {PENULTIMATE!r} is a "
            f"vector already; name one, {A_LAYER}, beside `--pooling {recipe.pooling}`"
        )
    return recipe.pooling or ("native" if recipe.layer == PENULTIMATE else "avg")


def _input_size(recipe: Recipe, entry: WeightsEnum) -> int | None:
    if recipe.input_size is None and recipe.backbone.startswith(_FIXED_INPUT):
        return int(entry.transforms().crop_size[0])
    smallest = _smallest(recipe.backbone)
    if recipe.input_size is None and recipe.patch_size < smallest:
        resized = f", or an input_size of at least {smallest} to resize to"
        raise SpecError(
            f"patch_size {recipe.patch_size} is below what {recipe.backbone} needs, {smallest} "
            f"pixels; give a larger patch{'' if recipe.mode == 'dense' else resized}"
        )
    return recipe.input_size


def _smallest(backbone: str) -> int:
    return int(max(default_entry(backbone).meta["min_size"]))


def _load(
    name: str, source: WeightsSource, layer: str, pooling: str, mode: str
) -> tuple[CutNetwork, str]:
    """A cut network, and the digest of its tensors."""
    tensors = read_tensors(source, name)
    full = _build(name, source)
    full_names = set(full.state_dict())
    trunk = _cut_classifier(full) if layer == PENULTIMATE else _cut_layer(full, name, layer)
    if tensors is not None:
        load_tensors(trunk, tensors, full_names, source.label)
    digest = tensor_digest(trunk)
    if mode == "exact":
        network = CutNetwork(trunk, pooling)
    elif layer == PENULTIMATE:
        network = DenseNetwork(*split_at_pooling(trunk))
    else:
        network = DenseNetwork(trunk, nn.Identity(), pooling)
    network = network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last), digest


def _build(name: str, source: WeightsSource) -> nn.Module:
    options: dict[str, Any] = dict(_BUILD_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = (source.entry or default_entry(name)).meta["min_size"][0]
    with torch.random.fork_rng(devices=[]):  # building draws numbers that nobody else should miss
        torch.default_generator.manual_seed(source.seed or 0)
        network: nn.Module = get_model(name, weights=None, **options)
    return network.eval()


def _cut_classifier(network: nn.Module) -> nn.Module:
    """Let through what enters the last layer that gives a number a class."""
    for auxiliary in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, auxiliary):
            setattr(network, auxiliary, None)
    last = [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == _CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels == _CLASSES)
    ][-1]
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def _cut_layer(network: nn.Module, name: str, layer: str) -> nn.Module:
    _, nodes = get_graph_node_names(network, suppress_diff_warning=True)
    prefixes = {node.rsplit(".", up)[0] for node in nodes for up in range(1, 1 + node.count("."))}
    if layer not in {*nodes, *prefixes}:
        raise SpecError(
            f"layer {layer!r} is no node of {name}; {_closest(layer, [*nodes, *prefixes])}"
        )
    return cast(
        nn.Module,
        create_feature_extractor(network, {layer: "features"}, suppress_diff_warning=True),
    )


def _dry_run(network: CutNetwork, recipe: Recipe, side: int) -> int:
    """Find the length of a vector, and whatever the network has against such patches."""
    try:
        with torch.inference_mode():
            features = network.features(noise(2, side))
    except Exception as error:  # every network has its own way to say no
        raise SpecError(
            f"{recipe.backbone} does not run on {side} x {side} pixels: "
            f"{one_line(error, 160)}; give another patch_size or input_size"
        ) from error
    check_poolable(features, network.pooling, recipe.layer, batch=2)
    if isinstance(network, DenseNetwork) and features.ndim != 4:
        raise SpecError(
            f"layer {recipe.layer!r} gives {tuple(features.shape[1:])}, no feature map that the "
            "mode dense could pool; name an earlier layer"
        )
    vectors = network.pooled(features)
    if not finite(vectors):
        raise SpecError(
            f"{recipe.backbone} with the weights {recipe.weights} gives NaN at the layer "
            f"{recipe.layer!r}; name an earlier layer, {A_LAYER}"
        )
    if torch.equal(vectors[0], vectors[1]):
        raise SpecError(
            f"{recipe.backbone} with the weights {recipe.weights} gives the same vector of any "
            f"picture at the layer {recipe.layer!r}; give trained weights, or another layer"
        )
    return vectors.shape[1]


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f"the closest are {', '.join(close or known[-4:])}"
