"""Who may ask: bearer tokens with a scope and, if wanted, an end (RFC 6750)."""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, cast, get_args

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from patchstore.errors import PatchstoreError

from .problems import Problem

logger = logging.getLogger(__name__)

Scope = Literal["read", "admin"]
MIN_LENGTH = 16
_BEARER = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Token:
    """A token as the service keeps it: its SHA-256, never itself."""

    digest: bytes
    scope: Scope
    expires: datetime | None

    @property
    def ended(self) -> str | None:
        """When its time ended, in words; None while it is good."""
        if self.expires is None or self.expires > datetime.now(UTC):
            return None
        return f"{self.expires:%Y-%m-%d %H:%M %Z}"


def parse_tokens(text: str) -> list[Token]:
    """The tokens of `PATCHSTORE_API_TOKENS`: `read:TOKEN admin:TOKEN@2027-01-31`.

    Raises:
        PatchstoreError: an entry that is not of this form, or has the token of another; says which,
            never its token. No entry at all where it is set.
    """
    tokens: dict[bytes, Token] = {}
    for number, entry in enumerate(text.replace(",", " ").split(), start=1):
        token = _parse(entry, number)
        if token.digest in tokens:
            raise PatchstoreError(
                f"entry {number} of PATCHSTORE_API_TOKENS has the token of an earlier one; "
                "a token has one scope and one end"
            )
        tokens[token.digest] = token
    if text and not tokens:  # what leaves a template of empty secrets opens the service to nobody
        raise PatchstoreError("PATCHSTORE_API_TOKENS holds no token; unset it, or give one")
    return list(tokens.values())


def expired(tokens: Sequence[Token]) -> list[str]:
    """Which tokens' time has ended, a line each."""
    return [
        f"entry {number} of PATCHSTORE_API_TOKENS opens nothing: its time ended at {ended}"
        for number, token in enumerate(tokens, start=1)
        if (ended := token.ended)
    ]


def warn_of_expired(tokens: Sequence[Token]) -> None:
    """Tells the log of tokens whose time has ended."""
    for line in expired(tokens):
        logger.warning("%s", line)


def _parse(entry: str, number: int) -> Token:
    scope, _, rest = entry.partition(":")
    token, at, end = rest.partition("@")
    where = f"entry {number} of PATCHSTORE_API_TOKENS"
    if scope not in get_args(Scope):
        raise PatchstoreError(f"{where} does not begin with read: or admin:")
    if len(token) < MIN_LENGTH:
        raise PatchstoreError(
            f"{where} has a token of {len(token)} characters; give at least {MIN_LENGTH}, "
            "such as the output of: openssl rand -hex 32"
        )
    expires = None
    if at:
        try:
            expires = datetime.fromisoformat(end)
        except ValueError:
            raise PatchstoreError(
                f"{where} ends at {end!r}, which is no date such as 2027-01-31"
            ) from None
        expires = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    return Token(_digest(token), cast(Scope, scope), expires)


class Gate:
    """Lets requests through that carry a token of a scope: a FastAPI dependency, or `admit`."""

    def __init__(self, tokens: Sequence[Token], scope: Scope) -> None:
        self._tokens = tokens
        self._scope = scope

    async def admit(self, request: Request) -> None:
        """As the dependency, for a request that FastAPI does not see."""
        await self(await _BEARER(request))

    async def __call__(
        self, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        """Raises Problem where the token is missing, unknown, at its end or of another scope."""
        if credentials is None:
            raise Problem("token_missing", "this needs the header Authorization: Bearer TOKEN")
        token = self._find(credentials.credentials)
        if token is None:
            raise Problem("token_unknown", "the token is not one of this service's")
        if ended := token.ended:
            raise Problem("token_expired", f"the token's time ended at {ended}")
        if self._scope == "admin" and token.scope != "admin":
            raise Problem(
                "scope_missing", "this needs a token of the scope admin; this one may read"
            )

    def _find(self, presented: str) -> Token | None:
        """The token that was presented; takes the same time whichever it is, or none."""
        digest = _digest(presented)
        matches = [token for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        return matches[0] if matches else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
