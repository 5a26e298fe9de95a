"""A client of the HTTP service in one file: import it, or copy it into a program of your own.

It needs httpx and nothing else. The words are those of the service:

    with PatchstoreClient("http://127.0.0.1:8080") as client:
        for hit in client.search(image=Path("query.jpg"), k=5, other_images=True).hits:
            print(hit.distance, hit.uri, hit.box)

Nothing is ever sent twice by itself. After `ConnectionFailed` and `NotReady` every call may be
repeated: `set_metadata` says the same again, all others only read.

PatchstoreError
├── ConnectionFailed        the service cannot be reached, or did not answer in time
└── ProblemError            the service refused: status, rule, title, detail, request_id
    ├── Unauthorized        the token is missing, unknown, at its end, or may not do this
    ├── NotFound            no such spec, image, patch or picture
    └── NotReady            ask again later: the spec is building, the service is busy or waits
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import httpx

Box = tuple[int, int, int, int]  # x, y, width, height in the upright original
T = TypeVar("T")


class PatchstoreError(Exception):
    """Base of every error of this client; its text is one line for a person."""


class ConnectionFailed(PatchstoreError):
    """The service cannot be reached, or did not answer in time."""


@dataclass(eq=False)
class ProblemError(PatchstoreError):
    """The service refused, as problem details say (RFC 9457)."""

    status: int  # of HTTP
    rule: str  # a word for programs, such as `k_range`; empty if it was not the service that spoke
    title: str  # the rule in words
    detail: str  # what was wrong this time
    request_id: str  # under which the service's log has the request
    retry_after_s: float | None = None  # when to ask again, if the service said so

    def __str__(self) -> str:
        return f"{self.title}: {self.detail}" if self.detail else self.title


class Unauthorized(ProblemError):
    """The token is missing, unknown, at its end, or may not do this."""


class NotFound(ProblemError):
    """No such spec, image, patch or picture."""


class NotReady(ProblemError):
    """The same request may well succeed later, after `retry_after_s` if that is known."""


_KINDS = {401: Unauthorized, 403: Unauthorized, 404: NotFound, 409: NotReady, 503: NotReady}


@dataclass(frozen=True)
class Question:
    """What was asked about."""

    image_ids: tuple[int, ...] = ()  # images in the store with its content
    patch_id: int | None = None
    box: Box | None = None
    width: int | None = None  # of an uploaded picture, upright
    height: int | None = None
    vector: tuple[float, ...] | None = None  # with `with_vector`


@dataclass(frozen=True)
class Patch:
    """A searchable patch; `thumbnail` is a path of the service."""

    patch_id: int
    image_id: int
    box: Box
    scale: float
    thumbnail: str


@dataclass(frozen=True)
class Hit(Patch):
    """A ranked answer. `distance` is in the spec's metric: smaller is closer."""

    uri: str
    distance: float
    metadata: dict[str, Any]
    matched: int | None = None  # with `consistent`: patches of the region that agree


@dataclass(frozen=True)
class Answer:
    """The hits, closest first; `exact`: whether every patch in question was compared."""

    spec: str
    metric: str
    exact: bool
    question: Question
    hits: list[Hit]


@dataclass(frozen=True)
class Image:
    """An image where it is now; one of its places if it has several. `picture` is a path."""

    image_id: int
    uri: str
    width: int | None
    height: int | None
    size_bytes: int
    sha256: str
    first_seen: datetime
    last_seen: datetime
    metadata: dict[str, Any]
    picture: str


@dataclass(frozen=True)
class Spec:
    """A recipe, its searchable images and patches, and its images that wait or failed."""

    name: str
    digest: str
    dim: int
    metric: str
    recipe: dict[str, Any]
    indexed: bool
    images: int
    patches: int
    pending: int
    failed: int
    aliases: list[str] = field(default_factory=list)  # an older service does not tell them


class PatchstoreClient:
    """A connection to the service. Threads may share one; close it, or use it in a `with`.

    Every method raises ConnectionFailed, and ProblemError where the service refuses. `timeout` is
    in seconds, for each step of a request; `transport` is httpx's, for tests.
    Raises ValueError for a token that is none.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {_checked(token)}"}
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=timeout, transport=transport
        )

    def __enter__(self) -> "PatchstoreClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def search(
        self,
        *,
        image: bytes | Path | BinaryIO | None = None,
        region: Box | None = None,
        vector: Any = None,
        patch_id: int | None = None,
        place: tuple[str | int, int, int] | None = None,
        spec: str | None = None,
        k: int = 10,
        by: Literal["patch", "image"] = "patch",
        other_images: bool = False,
        filter: Mapping[str, Any] | None = None,
        prefix: str | None = None,
        image_ids: Sequence[int] | None = None,
        touching: Box | None = None,
        max_distance: float | None = None,
        ef_search: int | None = None,
        exact: bool = False,
        merge: bool = False,
        consistent: bool = False,
        with_vector: bool = False,
    ) -> Answer:
        """The patches or images most like a picture, a vector or a stored patch.

        Args:
            image: a picture: the encoded file, its path, or a file opened in binary; `region` is
                the part of it that is asked about.
            vector: as many floats as the spec has: a sequence, or a numpy array (D,).
            place: a stored patch by its image's URI or id, x and y.

        Raises:
            TypeError: `image` is a str.
            ValueError: not exactly one of image, vector, patch_id and place; `region` or
                `consistent` without a picture; or a vector that is no row of finite numbers.
        """
        if sum(asked is not None for asked in (image, vector, patch_id, place)) != 1:
            raise ValueError("give exactly one of image, vector, patch_id and place")
        if image is None and (region is not None or consistent):
            raise ValueError("region and consistent are about a picture: give image, too")
        options: dict[str, Any] = {
            **{"spec": spec, "k": k, "by": by, "prefix": prefix, "max_distance": max_distance},
            **{"filter": filter and dict(filter), "ef_search": ef_search, "exact": exact},
            **{"image_ids": _whole(image_ids), "touching": _whole(touching), "merge": merge},
            **{"other_images": other_images, "with_vector": with_vector},
        }
        if image is not None:
            options |= {"region": _whole(region), "consistent": consistent}
            data = {n: _as_text(n, _plain(v)) for n, v in options.items() if v is not None}
            if isinstance(image, str):  # httpx would send the text itself
                raise TypeError(f"image is the str {image[:80]!r}; give a Path, bytes or a file")
            content = image.read_bytes() if isinstance(image, Path) else image
            return self._ask(_answer, "POST", "search", data=data, files={"image": content})
        if vector is not None:
            options["vector"] = _numbers(vector)
        elif place is not None:
            image_at, x, y = place
            at = {"uri": image_at} if isinstance(image_at, str) else {"image_id": index(image_at)}
            options["place"] = {**at, "x": index(x), "y": index(y)}
        else:
            options["patch_id"] = patch_id
        given = {name: _plain(value) for name, value in options.items() if value is not None}
        return self._ask(_answer, "POST", "search", json=given)

    def images(
        self,
        *,
        spec: str | None = None,
        prefix: str | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> Iterator[Image]:
        """All images that are there now, or that have patches under a spec, by id; pages are
        fetched as they are needed."""
        contains = None if filter is None else json.dumps(dict(filter))
        asked = {"spec": spec, "prefix": prefix, "filter": contains}
        params: dict[str, Any] = {n: value for n, value in asked.items() if value is not None}
        while "after" not in params or params["after"] is not None:
            found, params["after"] = self._ask(_page, "GET", "images", params=params)
            yield from found

    def image(self, image_id: int) -> Image:
        """An image that is there now, or that searches still show."""
        return self._ask(partial(_made, Image), "GET", f"images/{image_id:d}")

    def patches(self, image_id: int, spec: str | None = None) -> list[Patch]:
        """An image's searchable patches, by scale, then row by row."""
        params = {} if spec is None else {"spec": spec}
        path = f"images/{image_id:d}/patches"
        return self._ask(lambda told: _many(Patch, told["patches"]), "GET", path, params=params)

    def picture(self, image_id: int, *, side: int = 1024) -> bytes:
        """An image, upright, as a JPEG whose longer side is at most `side`."""
        return self._send("GET", f"v1/images/{image_id:d}/picture.jpg?side={side:d}").content

    def thumbnail(self, patch_id: int, *, side: int = 224) -> bytes:
        """A patch, cut from the original, as a JPEG whose longer side is at most `side`."""
        return self._send("GET", f"v1/patches/{patch_id:d}/thumbnail.jpg?side={side:d}").content

    def set_metadata(self, image_id: int, metadata: Mapping[str, Any]) -> Image:
        """Replaces an image's metadata; needs a token of the scope admin where tokens are."""
        return self._ask(
            partial(_made, Image), "PUT", f"images/{image_id:d}/metadata", json=dict(metadata)
        )

    def specs(self) -> list[Spec]:
        """All specs, in the order in which they were added."""
        return self._ask(lambda told: _many(Spec, told["specs"]), "GET", "specs")

    def stats(self) -> dict[str, Any]:
        """Counts of the store: `sources`, `locations`, `images`, `size_bytes`, `specs`."""
        return self._ask(dict, "GET", "stats")

    def ready(self) -> bool:
        """Whether the database answers and the network is loaded."""
        try:
            return self._send("GET", "readyz").is_success
        except NotReady:
            return False

    def _ask(self, read: Callable[[Any], T], method: str, path: str, **request: Any) -> T:
        response = self._send(method, f"v1/{path}", **request)
        try:
            return read(response.json())
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _problem(response, "not an answer of patchstore") from error

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            address = f"{str(self._http.base_url).rstrip('/')}/{path}"
            raise ConnectionFailed(f"{method} {address}: {reason}") from error
        if not response.is_success:
            raise _problem(response, response.reason_phrase or "refused")
        return response


def _problem(response: httpx.Response, otherwise: str) -> ProblemError:
    """The error of a response; a proxy's page has no rule and no id."""
    told: Any = {"detail": " ".join(response.text.split())[:200]}
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        with suppress(ValueError):
            document = response.json()
            told = document if isinstance(document, dict) else told
    words = (str(told.get(name, "")) for name in ("rule", "title", "detail", "request_id"))
    rule, title, detail, request_id = words
    wait = response.headers.get("Retry-After", "")
    kind = _KINDS.get(response.status_code, ProblemError)
    retry_after_s = float(wait) if wait.isdecimal() else None
    return kind(response.status_code, rule, title or otherwise, detail, request_id, retry_after_s)


def _made(kind: type[T], told: Mapping[str, Any]) -> T:
    """A dataclass of the fields that it knows: a newer service may say more."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _read(name, told[name]) for name in told.keys() & known})


def _many(kind: type[T], told: Any) -> list[T]:
    return [_made(kind, one) for one in told]


def _read(name: str, value: Any) -> Any:
    if name in ("box", "image_ids", "vector") and value is not None:
        return tuple(value)
    return datetime.fromisoformat(value) if name in ("first_seen", "last_seen") else value


def _answer(told: Any) -> Answer:
    parts = {"question": _made(Question, told["question"]), "hits": _many(Hit, told["hits"])}
    return _made(Answer, {**told, **parts})


def _page(told: Any) -> tuple[list[Image], int | None]:
    return _many(Image, told["images"]), told["next"]


def _numbers(vector: Any) -> list[float]:
    try:
        numbers = [
            float(each) for each in (vector.tolist() if hasattr(vector, "tolist") else vector)
        ]
    except TypeError:
        raise ValueError("the vector is not one row of numbers, shape (D,)") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("the vector holds NaN or infinity")
    return numbers


def _checked(token: str) -> str:
    """A token without the end of its line. What else a header cannot hold is not to be printed."""
    token = token.strip()
    if not (token.isascii() and token.isprintable() and token):
        raise ValueError("the token is empty or holds what no token does; give it and nothing else")
    return token


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's own."""
    return value.item() if hasattr(value, "item") else value


def _whole(numbers: Sequence[int] | None) -> list[int] | None:
    return None if numbers is None else [index(number) for number in numbers]


def _as_text(name: str, value: Any) -> str:
    """A form's field."""
    if name in ("region", "touching"):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
