"""The same network run by another runtime than torch, which is faster on a CPU: see `.sessions`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Barrier, Lock
from typing import TypeVar

import torch
from torch import Tensor, nn

from .device import MNN, ONNX, OPENVINO, is_out_of_memory, use_cores
from .errors import DeviceError, one_line
from .network import DenseNetwork, difference, main_part
from .sessions import Session, open_session
from .spec import FeatureSpec
from .transfer import late

T = TypeVar("T")

log = logging.getLogger(__name__)

_SIZES = torch.export.Dim("patches", min=1, max=4096)
_ANY = torch.export.Dim.DYNAMIC
# Tells with a traceback which inequality of sizes it cannot solve, and goes on without.
_SHAPES = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_FILE = "network.onnx"  # in a folder of its own, for its weights lie beside it: ONNX ends at 2 GB
_KEPT = 8  # exports, each as large as its network: 45 MB for a ResNet-18
_LEAST = 8  # patches a batch; fewer are slower
_DENSE_STREAMS = 2  # a tile of 2,048 pixels takes half a gigabyte
_UNEVEN = 5  # pixels by which a rectangle that a dense network is tried on is no square
# Of the largest value; rounding alone gives 1e-6, up to 3e-4 by MNN, see `agreement`, 1e-2 in bf16.
_TOLERANCE = {ONNX: 1e-4, MNN: 1e-3, OPENVINO: 0.1}


class ExportedNetwork:
    """A network as a session of another runtime, on the CPU.

    Of a dense network it is the part before the pooling, which is run on rectangles of any size.
    """

    def __init__(
        self,
        network: nn.Module,
        side: int,
        runtime: str,
        export_folder: Path | None = None,
        cells: Callable[[int], int] | None = None,
    ) -> None:
        """Export a network, which takes seconds, unless that was done before.

        A session is only used when it gives what the network gives of noise.

        Args:
            network: float32 (N, 3, S, S) to float32 (N, D), in eval mode. Left as it is.
            side: S; of a dense network, of what it is tried on.
            runtime: one of `device.EXPORTED`.
            export_folder: where this network's export is kept, see `export_folder`; None: nowhere.
            cells: of a dense network, tells how many a side of so many pixels has.

        Raises:
            DeviceError: it cannot be exported, or not be run.
        """
        self._opener = _Opener(network, side, runtime)
        self._folder = export_folder
        self._cells = cells
        self._opening = Lock()
        self._reason = ""  # why the last session failed
        self._session: Session | None = self._open()
        # How many batches are to run at once for all cores to be at work.
        self.streams = self._session.streams

    def __call__(self, patches: Tensor) -> Tensor:
        """Run normalised patches, float32 (N, 3, S, S) channels last, to vectors (N, D).

        A dense network's rectangles (N, 3, H, W) to feature maps (N, C, h, w).

        Raises:
            DeviceError: it fails; the next call opens the network again.
        """
        with self._opening:
            session = self._session = self._session or self._open()
        try:
            found = _run(session, patches)
            self._check_size(patches, found)
        except Exception as error:
            self._reason = "out of memory" if is_out_of_memory(error) else one_line(error)
            if self._session is session:
                self._session = None
        else:
            if self._session is session:  # no other thread has broken it meanwhile
                return found
        del session  # which the error's traceback would keep in memory
        raise DeviceError(f"a pass of {self._opener.runtime} failed: {self._reason}")

    def _open(self) -> Session:
        opener, folder = self._opener, self._folder
        try:
            return _kept(opener, folder) or _exported(opener, folder)
        except Exception as error:  # exporting runs a network's own Python: anything may come out
            raise DeviceError(
                f"{opener.runtime} cannot run this network: {one_line(error)}"
            ) from error

    def _check_size(self, patches: Tensor, found: Tensor) -> None:
        """Without memory OpenVINO may give what it has of an earlier pass, and no error."""
        whole = len(found) == len(patches)
        if self._cells is not None:
            whole = whole and found.shape[2:] == tuple(map(self._cells, patches.shape[2:]))
        if not whole:
            raise MemoryError

    def share(self, patches: int) -> int:
        """Of so many patches that may be computed at once, how many are one stream's."""
        return min(patches, max(_LEAST, patches // self.streams))

    def start(self, make: Callable[[T], Tensor], part: T) -> Future[Tensor]:
        """Begin to run what `make` makes of a part, behind all that has begun before.

        A batch is made where it is run, on threads of the network's own, on which torch computes by
        itself: `make` must let several threads call it.
        """
        return self._threads.submit(self._make_and_run, make, part)

    def map(self, make: Callable[[T], Tensor], parts: Iterable[T]) -> Iterator[Tensor]:
        """Run what `make` makes of each part, several at once; the results come in order."""
        started = (self.start(make, part) for part in parts)
        for future in late(started, by=2 * self.streams):
            yield future.result()

    @torch.inference_mode()
    def _make_and_run(self, make: Callable[[T], Tensor], part: T) -> Tensor:
        return self(make(part))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """As many as there are streams."""
        threads, all_here = torch.get_num_threads(), Barrier(self.streams)
        pool = ThreadPoolExecutor(self.streams, "network")
        for alone in [pool.submit(_compute_alone, all_here) for _ in range(self.streams)]:
            alone.result()
        torch.set_num_threads(threads)  # of this thread and of those to come
        return pool


def _compute_alone(all_here: Barrier) -> None:
    """Spare this thread the team of others that each one which calls torch gets otherwise."""
    use_cores(1)
    all_here.wait()  # so that no thread takes the turn of another


class _ByRows(nn.Module):
    """What is exported of a network; it takes pixels as they lie in memory, (N, H, W, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        return main_part(self.network)(rows.permute(0, 3, 1, 2))


def export(network: nn.Module, side: int, file: Path) -> None:
    """Write a network as ONNX: `rows`, float32 (N, S, S, 3), to vectors (N, D).

    Of a dense network, what `ExportedNetwork` runs: rows (N, H, W, 3) to maps (N, C, h, w).
    """
    dense = isinstance(network, DenseNetwork)
    # Two, for a batch of one would become part of the graph; so would a width that is the height.
    rows = torch.zeros(2, side, side + _UNEVEN if dense else side, 3)
    sizes = {0: _SIZES, 1: _ANY, 2: _ANY} if dense else {0: _SIZES}
    with warnings.catch_warnings(), _quiet(_SHAPES), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own deprecated parts
        program = torch.onnx.export(
            _ByRows(network).eval(),
            (rows,),
            input_names=["rows"],
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(file, external_data=True)


@contextmanager
def _quiet(teller: logging.Logger) -> Iterator[None]:
    level = teller.level
    teller.setLevel(logging.ERROR)
    try:
        yield
    finally:
        teller.setLevel(level)


def export_folder(folder: Path, spec: FeatureSpec) -> Path:
    """Name the folder in which the export of a spec's network is kept, by all that decides it."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "torchvision", "onnx")]
    return folder / sha256(" ".join([spec.digest, *libraries]).encode()).hexdigest()[:32]


def is_exported(export_folder: Path | None) -> bool:
    """Tell whether a network need not be exported again."""
    return export_folder is not None and (export_folder / _FILE).is_file()


class _Opener:
    """Opens exports of one network by one runtime, and believes none that it has not tried."""

    def __init__(self, network: nn.Module, side: int, runtime: str) -> None:
        self.network = network
        self.side = side
        self.runtime = runtime

    def open(self, file: Path) -> Session:
        """The session of an export. Raises ValueError unless it gives what the network gives."""
        session = open_session(
            self.runtime,
            file,
            threads=torch.get_num_threads(),
            most_streams=_DENSE_STREAMS if isinstance(self.network, DenseNetwork) else None,
        )
        tolerance = _TOLERANCE[self.runtime]
        generator = torch.Generator().manual_seed(0)
        for shape in _tried_shapes(self.network, self.side):
            noise = torch.randn(shape, generator=generator)
            with torch.inference_mode():
                expected, found = main_part(self.network)(noise), _run(session, noise)
            if expected.shape != found.shape:
                raise ValueError(
                    f"its maps are of {tuple(found.shape)}, not {tuple(expected.shape)}"
                )
            off = difference(expected, found)
            if not off <= tolerance:  # NaN is no agreement either
                raise ValueError(f"its vectors differ by {off:.0e}")
        return session


def _kept(opener: _Opener, export_folder: Path | None) -> Session | None:
    """The session of an earlier export, in working order."""
    if export_folder is None or not is_exported(export_folder):
        return None
    try:
        session = opener.open(export_folder / _FILE)
        os.utime(export_folder)  # `_forget` deletes what was not used for longest
    except Exception as error:  # a file that was cut off makes any trouble
        if is_out_of_memory(error):
            raise
        log.warning("exporting again: %s (%s)", export_folder, one_line(error))
        return None
    return session


def _exported(opener: _Opener, export_folder: Path | None) -> Session:
    """The session of a fresh export, which is kept where that is possible."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        export(opener.network, opener.side, Path(made) / _FILE)
        session = opener.open(Path(made) / _FILE)
        if export_folder is not None:
            _keep(Path(made), export_folder)
    return session


def _keep(made: Path, export_folder: Path) -> None:
    """Copy an export to where it is kept, so that nobody sees half of it."""
    try:
        export_folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=export_folder.parent) as beside:
            whole = shutil.copytree(made, Path(beside) / "whole")
            os.utime(whole)  # a copy is as old as what was copied
            shutil.rmtree(export_folder, ignore_errors=True)
            whole.rename(export_folder)
        _forget(export_folder.parent)
    except OSError as error:  # full, not ours, or another process was quicker
        log.info("the exported network is not kept in %s: %s", export_folder, error.strerror)


def _forget(folder: Path) -> None:
    """Delete all but the exports that were used last."""
    with suppress(OSError):  # another process forgets, too
        by_use = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in by_use[_KEPT:]:
            shutil.rmtree(old)


def _tried_shapes(network: nn.Module, side: int) -> list[tuple[int, int, int, int]]:
    if not isinstance(network, DenseNetwork):
        return [(2, 3, side, side)]
    # Runtimes differ in what a pooling or a stride does with the pixels that are left at the end.
    return [(1, 3, side + more, side + _UNEVEN - more) for more in range(4)]


def _run(session: Session, patches: Tensor) -> Tensor:
    return torch.from_numpy(session.run(patches.permute(0, 2, 3, 1).contiguous().numpy()))
