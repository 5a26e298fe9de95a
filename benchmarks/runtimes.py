"""Ways to run one network over the same patches, and whether they give the same vectors.

The forward pass alone, in patches a second, each way over the same few batches once a round, in
turn; the median counts. The low precisions run where the processor has instructions for them.
"Set-up" is what the first round costs more than the others: exporting, compiling. Cosines are to
the first way, the lowest of a batch.

    python -m benchmarks.runtimes --backbone resnet18 --weights random:0
    python -m benchmarks.runtimes ... --batch 1  # a question's pass
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from extractor.backbone import resolve
from extractor.compiled import compiled
from extractor.device import DTYPES, FLOAT32, candidates, choose_device, exported_ways
from extractor.onnx import ExportedNetwork, export
from extractor.packed import packed
from extractor.sessions import load_openvino
from patchstore.bench import home as homes
from patchstore.bench.bare import run
from patchstore.bench.report import machine, table

BATCHES = 4  # a round
Network = Callable[[Tensor], Tensor]


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    resolved = resolve(homes.spec_options(arguments).recipe())
    spec, network = resolved.spec, resolved.backbone.network
    device = choose_device("cpu")
    folded = resolved.backbone.folded(spec.side)
    torch.manual_seed(0)
    batch = torch.randn(arguments.batch, 3, spec.side, spec.side)
    rows = batch.contiguous(memory_format=torch.channels_last)
    ways: dict[str, tuple[Callable[[], Network], Tensor]] = {
        "torch, patch by patch, NCHW": (lambda: one_by_one(plain(network)), batch),
        "torch": (lambda: network, rows),
        "torch, norms folded": (lambda: folded, rows),
        "torch, weights packed for few": (lambda: packed(folded, rows), rows),
        "torch.compile, frozen": (lambda: compiled(folded), rows),
        "OpenVINO, float32": (lambda: openvino(folded, spec.side), rows),
    }
    for way in exported_ways(device):
        ways[f"{way.runtime}, {way.precision}"] = (
            lambda r=way.runtime: ExportedNetwork(folded, spec.side, r),  # type: ignore[misc]
            rows,
        )
    for precision in candidates(device):
        ways[f"torch, norms folded, {precision}"] = (lambda p=precision: low(folded, p), rows)  # type: ignore[misc]
        ways[f"torch.compile, frozen, {precision}"] = (
            lambda p=precision: low(compiled(folded), p),  # type: ignore[misc]
            rows,
        )
    with torch.no_grad():
        print(table(_COLUMNS, measure(ways, arguments.rounds)))
    print(f"\n{spec.backbone}, batches of {arguments.batch} patches of {spec.side} pixels")
    with homes.temporary_home() as home:
        homes.run_command(home, "db", "upgrade")
        print(machine(homes.database_url(home)))


_COLUMNS = ("way", "patches/s", "times torch", "set-up, s", "lowest cosine")


def measure(
    ways: dict[str, tuple[Callable[[], Network], Tensor]], rounds: int
) -> list[tuple[str, str, str, str, str]]:
    """The table's lines."""
    networks: dict[str, Network] = {}
    setup: dict[str, float] = {}
    vectors: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, (make, batch) in ways.items():
        begun = time.perf_counter()
        networks[name] = make()
        vectors[name] = torch.cat(run(networks[name], [batch])).float()
        setup[name] = time.perf_counter() - begun
    for _ in range(rounds):
        for name, (_make, batch) in ways.items():
            begun = time.perf_counter()
            run(networks[name], [batch] * BATCHES)
            seconds[name].append((time.perf_counter() - begun) / BATCHES)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    exact = next(iter(vectors.values()))
    return [
        (
            name,
            f"{len(batch) / medians[name]:.1f}",
            f"{medians['torch'] / medians[name]:.2f}",
            f"{max(0.0, setup[name] - medians[name]):.1f}",
            f"{float(cosine_similarity(vectors[name], exact).min()):.6f}",
        )
        for name, (_make, batch) in ways.items()
    ]


def plain(network: nn.Module) -> nn.Module:
    """The network as torchvision lays it out in memory."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def one_by_one(network: nn.Module) -> Network:
    """As tutorials do."""
    return lambda batch: torch.cat([network(patch[None]) for patch in batch])


def low(network: Network, precision: str) -> Network:
    """In a lower precision, by autocast."""

    def run(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", DTYPES[precision]) if precision != FLOAT32 else nullcontext():
            return network(batch)

    return run


def openvino(network: nn.Module, side: int) -> Network:
    """By OpenVINO, float32, in as many threads as torch has."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export(network, side, file)
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = load_openvino().Core().compile_model(str(file), "CPU", options)

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(np.array(model(batch.permute(0, 2, 3, 1).numpy())[0]))

    return run


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__, images_required=False)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
