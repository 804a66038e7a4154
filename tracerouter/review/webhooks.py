"""Tells callers what came of their reviews: signed, to addresses that the owner allows, until it is taken.

The convention is that of Standard Webhooks: the headers ``webhook-id``, ``webhook-timestamp`` and
``webhook-signature``, over which and the body an HMAC-SHA256 is made.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import logging
import random
import re
import socket
import time
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from tracerouter.errors import BadRequest, ConfigError, place
from tracerouter.review.queue import REVIEW, told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracerouter.store import Item, Items

log = logging.getLogger(__name__)

HEADER: Final = "x-tracerouter-webhook"
"""A caller's header that names the URL."""
GIVE_UP: Final = 86_400.0
"""Seconds after which a delivery that nobody takes is given up."""

_TIMEOUT: Final = 15.0
"""Seconds that one try may take."""
_LEASE: Final = 60.0
"""Seconds after which a delivery whose process died is tried by another."""
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 7_200.0
_PREFIX: Final = "whsec_"
_KEY_BYTES: Final = range(24, 65)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_GONE: Final = 410
"""The status by which a receiver says that it wants no more."""


class Webhooks:
    """Where callers may be told, and how.

    Args:
        allow: URLs that a target must begin with: same scheme, host and port, and its path below theirs.
        secret: ``whsec_`` and 24 to 64 random bytes in base64: signs what is sent.
        private: Whether targets may be at loopback and private addresses.

    Raises:
        ConfigError: The secret or a URL is not what it should be.
    """

    def __init__(self, allow: Sequence[str], secret: str, *, private: bool = False) -> None:
        self._allow = [_prefix(one) for one in allow]
        self._key = _key_of(secret)
        self._private = private

    def check(self, target: str) -> None:
        """Check that a caller may be told at `target`, as far as its text says.

        Raises:
            BadRequest: It may not.
        """
        if self._url(target) is None:
            msg = f"the header `{HEADER}` must be a URL below one that this gateway allows: ask whoever runs it"
            raise BadRequest(msg, HEADER)

    async def deliver(self, items: Items, item: Item) -> None:
        """Try once to deliver `item`, unless another process does; if it is not taken, put it off or give it up.

        Raises:
            StoreUnavailable: It is tried again when the store is back.
        """
        now = time.time()
        mine = await items.change(item, by="tracerouter", what="try", due=now + _LEASE)
        if mine is None:
            return
        review = await items.get(REVIEW, str(mine.body["review"]))
        refused = "the review is gone" if review is None else await self._post(str(mine.body["url"]), told(review))
        if refused is None:
            await items.change(mine, by="tracerouter", what="deliver", state="delivered", due=None)
            return
        tries = int(mine.body["tries"]) + 1
        again = time.time() + _pause(tries)
        if review is None or refused == str(_GONE) or again > mine.created + GIVE_UP:
            log.warning("a webhook for the review %s was given up: %s", mine.body["review"], refused)
            await items.change(mine, by="tracerouter", what=f"give up: {refused}", state="given_up", due=None)
            return
        body = {**mine.body, "tries": tries}
        await items.change(mine, by="tracerouter", what=f"fail: {refused}", due=again, body=body)

    async def _post(self, target: str, review: Mapping[str, Any]) -> str | None:
        """Send it once, and return why it was not taken."""
        url = self._url(target)
        if url is None:
            return "not allowed"
        at = datetime.now(UTC)
        body = orjson.dumps(
            {"type": f"review.{review['state']}", "timestamp": at.isoformat(timespec="seconds"), "data": review}
        )
        headers = self.signed(str(review["id"]), int(at.timestamp()), body)
        # a session of its own: no cookies, no proxy of the environment's, no connection that was checked long ago
        connector = aiohttp.TCPConnector(resolver=_Checked(private=self._private), use_dns_cache=False, limit=1)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
                ) as http,
                http.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return None if response.ok and response.status < 300 else str(response.status)  # noqa: PLR2004 - HTTP's
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return type(error).__name__
        except Exception as error:  # noqa: BLE001 - one target must not stop the others
            log.error("a webhook failed: %s", place(error))
            return "error"

    def signed(self, id: str, at: int, body: bytes) -> dict[str, str]:  # noqa: A002 - the convention's name
        """Return the headers of a message (Standard Webhooks): `at` is Unix seconds."""
        mac = hmac.new(self._key, f"{id}.{at}.".encode() + body, sha256).digest()
        return {
            "content-type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": str(at),
            "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
        }

    def _url(self, target: str) -> URL | None:
        """Return `target`, if it is below what is allowed, and at no address that is not."""
        try:
            url = URL(target)
            inside = any(_below(url, prefix) for prefix in self._allow)
        except ValueError:
            return None
        if not inside or url.user is not None or url.password is not None or url.fragment:
            return None
        literal = _address(url.host or "")  # aiohttp asks no resolver for one
        return url if self._private or literal is None or _is_public(literal) else None


class _Checked(AbstractResolver):
    """Resolves a name and refuses it where an address is not public; the connection goes to what it returns."""

    def __init__(self, *, private: bool) -> None:
        self._inner = DefaultResolver()
        self._private = private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of `host`."""
        found = await self._inner.resolve(host, port, family)
        addresses = [_address(one["host"]) for one in found]
        if not self._private and not all(one is not None and _is_public(one) for one in addresses):
            msg = "the name stands for an address that is not public"
            raise OSError(msg)
        return found

    async def close(self) -> None:
        """Free the resolver."""
        await self._inner.close()


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(address: _Address) -> bool:
    """Return whether everybody may be at an address, and at the one that it wraps."""
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
        teredo = address.teredo[1] if address.teredo else None
        wrapped = address.ipv4_mapped or address.sixtofour or teredo or nat64
        if wrapped is not None:
            return _is_public(wrapped)
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _prefix(found: str) -> URL:
    url = URL(found)
    if url.scheme not in {"http", "https"} or not url.host or url.query_string or url.user is not None or url.fragment:
        msg = f"webhooks.allow: found {found!r}; it should be a URL such as https://hooks.example.com/reviews"
        raise ConfigError(msg)
    return url


def _below(url: URL, prefix: URL) -> bool:
    climbs = ".." in re.split(r"[/\\]", url.path)  # however it was written: a receiver may read it so
    if (url.scheme, url.host, url.port) != (prefix.scheme, prefix.host, prefix.port) or climbs:
        return False
    wanted = [part for part in prefix.parts if part not in {"/", ""}]
    return [part for part in url.parts if part not in {"/", ""}][: len(wanted)] == wanted


def _key_of(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        msg = (
            f"webhooks.secret: should be {_PREFIX} and 24 to 64 random bytes in base64; "
            f'make one with: echo "{_PREFIX}$(openssl rand -base64 32)"'
        )
        raise ConfigError(msg)
    return key


def _pause(tries: int) -> float:
    """Return for how long to wait after so many tries (seconds): ever longer, and not all at the same moment."""
    return min(_FIRST_PAUSE * 4.0 ** (tries - 1), _LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
