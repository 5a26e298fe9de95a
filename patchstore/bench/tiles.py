"""Pixeltable, tiles and an embedding index, with the same network: the nearest peer.

Imports nothing heavy, because Pixeltable brings versions of its own of what others share.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .home import SpecOptions

BATCH = 32
PATIENCE_S = 10.0


@contextmanager
def pixeltable_home() -> Iterator[Path]:
    """A folder for Pixeltable, which leaves a Postgres running there: that ends with it."""
    with tempfile.TemporaryDirectory(prefix="patchstore-pixeltable-") as folder:
        home = Path(folder)
        try:
            yield home
        finally:
            lock = home / "pgdata" / "postmaster.pid"
            with suppress(OSError):
                os.kill(int(lock.read_text().split()[0]), signal.SIGQUIT)
            deadline = time.monotonic() + PATIENCE_S
            while lock.exists() and time.monotonic() < deadline:
                time.sleep(0.05)


def run_tiles(
    home: Path, site: Path | None, files: Sequence[Path], options: SpecOptions
) -> tuple[str, int, float]:
    """Inserts images into a table whose view of tiles has an embedding index.

    Its tiles at the right and at the bottom are filled up with black, where patchstore shifts the
    last patch inward: the numbers of patches differ a little.

    Args:
        home: of `pixeltable_home`.
        site: folder that Pixeltable was installed into by `pip install --target`; None: it is in
            this environment.
        files: images.
        options: network and geometry.

    Returns:
        Its version, tiles, and seconds from the insertion to the last row.
    """
    os.environ["PIXELTABLE_HOME"] = str(home)
    if site is not None:
        sys.path.insert(0, str(site))
    import pixeltable as pxt
    from pixeltable.functions.image import tile_iterator

    embed = _embedding(pxt, options)
    images = pxt.create_table("images", {"image": pxt.Image})
    overlap = options.patch_size - options.stride
    size = (options.patch_size, options.patch_size)
    tiles = pxt.create_view(
        "tiles", images, iterator=tile_iterator(images.image, size, overlap=(overlap, overlap))
    )
    tiles.add_embedding_index("tile", embedding=embed)
    begun = time.perf_counter()
    images.insert({"image": str(file)} for file in files)
    return str(pxt.__version__), int(tiles.count()), time.perf_counter() - begun


def _embedding(pxt: Any, options: SpecOptions) -> Any:
    """`embed_tiles` as a function of Pixeltable's, which asks for one of a module's own."""
    from PIL import Image
    from pixeltable.func import Batch

    # Pixeltable reads the types of a function's values from its annotations.
    embed_tiles.__annotations__ = {
        "tiles": Batch[Image.Image],
        "return": Batch[pxt.Array[(_resolved(options).spec.dim,), pxt.Float]],
    }
    return pxt.udf(batch_size=BATCH)(embed_tiles)


def embed_tiles(tiles):  # type: ignore[no-untyped-def]
    """The network's float32 vectors of a batch of tiles."""
    import numpy as np
    import torch

    from .bare import normalised

    batch = normalised([np.asarray(tile.convert("RGB")) for tile in tiles], _resolved().spec)
    with torch.inference_mode():
        vectors = _resolved().backbone.network(batch.contiguous(memory_format=torch.channels_last))
    return list(vectors.flatten(1).numpy())


_known: list[Any] = []


def _resolved(options: SpecOptions | None = None) -> Any:
    """The spec and the network of this process, which computes for one spec."""
    if options is not None:
        from extractor.backbone import resolve

        _known[:] = [resolve(options.recipe())]
    return _known[0]
