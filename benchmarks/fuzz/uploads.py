"""Uploads that are no pictures, or were some before they were cut, bent or lied about."""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np
from PIL import Image

from extractor.errors import ImageError
from extractor.images import read_image

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO")
CLIENTS = 4
HEAVY_EVERY = 100


@dataclass
class UploadRun:
    """How the service answered: counts of its statuses, and what it should not have done."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def corrupt_uploads(count: int, seed: int, extra: Sequence[bytes] = ()) -> Iterator[bytes]:
    """`count` hostile files: noise, noise behind a true beginning, cut and bent pictures, bombs.

    Every hundredth is a heavy one, which costs the service as much memory as it lets be taken.

    Args:
        count: how many.
        seed: the same files for the same seed.
        extra: files of one's own, each sent as it is, cut and bent.
    """
    generator = np.random.default_rng(seed)
    originals = [*_pictures(generator), *extra]
    heavy = _heavy()
    makers = (_noise, _noise_behind_header, _cut, _bent, _bent, _bomb)
    for number in range(count):
        original = originals[int(generator.integers(len(originals)))]
        if number < len(extra):
            yield extra[number]
        elif number % HEAVY_EVERY == 0:
            yield heavy[number // HEAVY_EVERY % len(heavy)]
        else:
            yield makers[number % len(makers)](generator, original)


def send_uploads(
    url: str, uploads: Iterator[bytes], *, spec: str | None = None, clients: int = CLIENTS
) -> UploadRun:
    """Asks about each file, a few at a time, and checks each answer.

    Right is a problem document with a 4xx; or an answer, where the picture can be decoded.
    """
    run = UploadRun()
    limits = httpx.Limits(max_connections=clients)
    fields = {"k": "1"} | ({"spec": spec} if spec else {})
    with (
        httpx.Client(base_url=url, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(clients) as pool,
    ):

        def send(content: bytes) -> tuple[bytes, httpx.Response]:
            files = {"image": ("upload", content)}
            return content, client.post("/v1/search", files=files, data=fields)

        for content, answer in pool.map(send, uploads):
            run.statuses[answer.status_code] += 1
            if trouble := _trouble(content, answer):
                run.wrong.append(trouble)
    return run


def _trouble(content: bytes, answer: httpx.Response) -> str | None:
    start = f"{content[:12]!r}... ({len(content)} bytes)"
    if 400 <= answer.status_code < 500:
        problem = answer.headers.get("content-type") == "application/problem+json"
        return None if problem else f"{start}: a {answer.status_code} without a problem document"
    if answer.status_code != 200:
        return f"{start}: {answer.status_code} {answer.text[:200]}"
    try:
        read_image(content)
    except ImageError as error:
        return f"{start}: answered, but {error}"
    return None


def _pictures(generator: np.random.Generator) -> list[bytes]:
    pictures = []
    for kind in KINDS:
        for size in (16, 64, 200):
            pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
            smooth = Image.fromarray(pixels).resize((size, size), box=(0, 0, size / 8, size / 8))
            file = io.BytesIO()
            smooth.save(file, kind)
            pictures.append(file.getvalue())
    return pictures


def _noise(generator: np.random.Generator, original: bytes) -> bytes:
    return generator.bytes(int(generator.integers(0, 4096)))


def _noise_behind_header(generator: np.random.Generator, original: bytes) -> bytes:
    kept = int(generator.integers(2, 64))
    return original[:kept] + generator.bytes(int(generator.integers(0, 4096)))


def _cut(generator: np.random.Generator, original: bytes) -> bytes:
    return original[: int(generator.integers(0, len(original)))]


def _bent(generator: np.random.Generator, original: bytes) -> bytes:
    bent = bytearray(original)
    for at in generator.integers(0, len(bent), int(generator.integers(1, 12))).tolist():
        bent[at] = int(generator.integers(256))
    return bytes(bent)


def _bomb(generator: np.random.Generator, original: bytes) -> bytes:
    """A PNG whose header claims up to 2^31 pixels a side, in a hundred bytes; or an icon of it."""
    width, height = (int(2 ** generator.uniform(13, 31)) for _ in range(2))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    wrap = (bytes, as_ico, as_icns)[int(generator.integers(3))]
    return wrap(bomb)


def _heavy() -> list[bytes]:
    """Whole pictures, one colour each: one just within the limit of 50 million, three above it.

    The larger ones are below Pillow's own limit, two of them in an icon that claims to be small.
    """
    within, above = (_whole(side) for side in (7_000, 13_000))
    return [within, as_ico(above), within, as_icns(above), within, above]


def _whole(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(file, "PNG")
    return file.getvalue()


def as_ico(picture: bytes) -> bytes:
    """An ICO of 16 x 16 pixels, as it claims, with this picture in it."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + picture


def as_icns(picture: bytes) -> bytes:
    """An ICNS of 128 x 128 pixels, as it claims, with this picture in it."""
    block = b"ic07" + struct.pack(">I", 8 + len(picture)) + picture
    return b"icns" + struct.pack(">I", 8 + len(block)) + block
