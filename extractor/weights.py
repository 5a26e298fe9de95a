"""Where tensors come from: a torchvision enum, a file, or a seed; and what they hash to."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum, get_model_weights

from .errors import SpecError, WeightsError, one_line
from .uris import absolute

log = logging.getLogger(__name__)

_RANDOM = "random:"
_TIMEOUT_S = 15
_UNUSED = "num_batches_tracked"  # counts training steps; older files lack it
# Names that torchvision's files of DenseNets and transformers have, and its networks no longer: it
# changes them as it loads (`densenet._load_state_dict`, `vision_transformer.MLPBlock`).
_OLD_NAMES = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


@dataclass(frozen=True)
class WeightsSource:
    """Weights that a user named, found to be one of three kinds.

    Attributes:
        label: what a spec records: the enum's name, the file's name, or ``random:SEED``.
        source: where to load from: the enum's name, an absolute path, or ``random:SEED``.
        entry: the torchvision enum's value, if it is one.
        seed: of random weights, if they are.
        path: of the file, if it is one.
    """

    label: str
    source: str
    entry: WeightsEnum | None = None
    seed: int | None = None
    path: Path | None = None


def find_weights(backbone: str, weights: str) -> WeightsSource:
    """Tell which kind of weights a user means, without loading them.

    Raises:
        SpecError: ``random:`` without a whole number.
        WeightsError: neither an enum's name of this network nor a file that is there.
    """
    if weights.startswith(_RANDOM):
        return _random(weights)
    enum = get_model_weights(backbone)
    name = weights.removeprefix(f"{enum.__name__}.")
    if name in enum.__members__:  # DEFAULT is an alias; its value knows the real name
        entry = enum[name]
        return WeightsSource(entry.name, entry.name, entry=entry)
    path = absolute(weights)
    if path.is_file():
        return WeightsSource(path.name, str(path.resolve()), path=path.resolve())
    raise WeightsError(
        f"weights {weights!r} are neither a file that is there nor weights of {backbone}; give "
        f"one of {', '.join(entry.name for entry in enum)}, the path of a file, or random:SEED"
    )


def default_entry(backbone: str) -> WeightsEnum:
    """Give the enum value whose preprocessing stands for files and random weights."""
    return get_model_weights(backbone)["DEFAULT"]


def read_tensors(source: WeightsSource, backbone: str) -> dict[str, Tensor] | None:
    """Load a named state dict; None for random weights, which the network is built with.

    Raises:
        WeightsError: when they cannot be downloaded or read; the text says where to put them.
    """
    if source.seed is not None:
        return None
    path = source.path or _download(source.entry or default_entry(backbone), backbone)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that torch will not have for long
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read: {one_line(error, 160)}") from error
    except Exception as error:  # pickle, zip and torch each have errors of their own
        raise WeightsError(
            f"weights file {path} is corrupt or no state dict of torch ({type(error).__name__}); "
            "save one with torch.save(model.state_dict(), FILE)"
        ) from error
    return _unwrap(loaded, path)


def load_tensors(
    cut: nn.Module, tensors: Mapping[str, Tensor], full_names: set[str], label: str
) -> None:
    """Copy named tensors into a cut network, which must find all of its own.

    Args:
        cut: changed in place; tensors of another floating dtype are cast.
        tensors: may hold more than the cut network needs.
        full_names: tensors of the network before the cut; others mean another network.
        label: of the weights, for the message.

    Raises:
        WeightsError: naming a few of the tensors that are missing, of another shape, or unknown, or
            one that holds no plain and finite numbers.
    """
    wanted = named_tensors(cut)
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [
        f"{name} is {_shape(tensors[name])}, not {_shape(own)}"
        for name, own in wanted.items()
        if name in tensors and tensors[name].shape != own.shape
    ]
    wrong += [f"{name} is unknown" for name in tensors if name not in full_names]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"weights {label} are not of this network: {', '.join(wrong[:3])}{more}; give the "
            "weights of the same backbone, with torchvision's names"
        )
    for name, own in wanted.items():
        if reason := _unusable(tensors[name], own):
            raise WeightsError(
                f"weights {label}: {name} {reason}; save the network as it was trained, in floats, "
                "with torch.save(model.state_dict(), FILE)"
            )
    with torch.no_grad():
        for name, own in wanted.items():
            own.copy_(tensors[name])


def _unusable(given: Tensor, own: Tensor) -> str:
    """What is wrong with the values for one of a network's tensors; empty where nothing is."""
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        return "is quantized, sparse or has no values"
    if given.is_floating_point() != own.is_floating_point() or given.is_complex():
        return f"is of {given.dtype}, not of {own.dtype}"
    return "" if torch.isfinite(given).all() else "holds NaN or infinity"


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """List the tensors that decide what a network computes, sorted by name."""
    state = network.state_dict()
    return {name: state[name] for name in sorted(state) if not name.endswith(_UNUSED)}


def tensor_digest(network: nn.Module) -> str:
    """SHA-256 in hex over each tensor's name, dtype, shape and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(network).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def local_file(source: WeightsSource) -> Path | None:
    """Where the tensors lie, or are downloaded to; None for random ones."""
    return source.path if source.entry is None else _checkpoint(source.entry)


def weights_place(label: str, weights_source: str) -> str:
    """Where a spec's weights are on this machine, as `find_weights` takes it.

    Args:
        label: the recipe's `weights`; of a file, its name.
        weights_source: what the spec was added with; a file that is gone there may lie, by its
            name, in torch's own folder of checkpoints.

    Raises:
        WeightsError: the file is in neither place.
    """
    path = Path(weights_source)
    if not path.is_absolute() or path.is_file():
        return weights_source
    elsewhere = _checkpoint_folder() / label
    if not elsewhere.is_file():
        raise WeightsError(
            f"weights file {path} is gone; put it back there, or a copy to {elsewhere}"
        )
    return str(elsewhere)


def _checkpoint_folder() -> Path:
    """Where torch and we look for weight files: ``$TORCH_HOME/hub/checkpoints``."""
    return Path(torch.hub.get_dir()).expanduser() / "checkpoints"


def _checkpoint(entry: WeightsEnum) -> Path:
    return _checkpoint_folder() / Path(urlsplit(entry.url).path).name


def _random(weights: str) -> WeightsSource:
    seed = weights.removeprefix(_RANDOM)
    if not re.fullmatch(r"[0-9]{1,18}", seed):
        raise SpecError(f"weights {weights!r}: give a whole number as the seed, such as random:0")
    return WeightsSource(f"{_RANDOM}{int(seed)}", f"{_RANDOM}{int(seed)}", seed=int(seed))


def _download(entry: WeightsEnum, backbone: str) -> Path:
    """Find an enum's file in the checkpoint folder, or fetch it there.

    Not `torch.hub.load_state_dict_from_url`: that waits without a time limit where a firewall
    drops packets, and writes to the terminal.
    """
    path = _checkpoint(entry)
    if path.exists():
        return path
    log.info("downloading %s (%s of %s)", path.name, entry.name, backbone)
    try:
        _fetch(entry.url, path)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise WeightsError(
            f"weights {entry.name} of {backbone} are not at {path} and cannot be downloaded "
            f"({one_line(error, 160)}); fetch {entry.url} elsewhere and put it there, set "
            "TORCH_HOME to a folder that has hub/checkpoints with it, or give a file: "
            "patchstore spec add NAME --weights FILE"
        ) from error
    return path


def _fetch(url: str, path: Path) -> None:
    """Download to a name of its own beside `path`, check the hash in the name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
                shutil.copyfileobj(response, part, 1 << 20)
            part.flush()
            _check_hash(Path(part.name), path.name)
            Path(part.name).replace(path)
        finally:
            Path(part.name).unlink(missing_ok=True)


def _check_hash(part: Path, name: str) -> None:
    expected = re.search(r"-([a-f0-9]{8,})\.", name)
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected and not found.startswith(expected[1]):
        raise ValueError(f"the download's SHA-256 begins {found[:8]}, not {expected[1]}")


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise WeightsError(
            f"weights file {path} holds {type(loaded).__name__}, not named tensors; save one with "
            "torch.save(model.state_dict(), FILE)"
        )
    return {_present_name(name): value for name, value in loaded.items()}


def _present_name(name: str) -> str:
    name = name.removeprefix("module.")
    for old, present in _OLD_NAMES:
        name = old.sub(present, name)
    return name


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
