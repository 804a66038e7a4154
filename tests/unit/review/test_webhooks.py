"""Which targets are taken, which addresses are called, and how what is sent is signed."""

from __future__ import annotations

import base64
import ipaddress
import time

import pytest
from standardwebhooks.webhooks import Webhook

from tracerouter.errors import BadRequest, ConfigError
from tracerouter.review import Webhooks
from tracerouter.review.webhooks import GIVE_UP, _is_public, _pause

SECRET = f"whsec_{base64.b64encode(b'x' * 32).decode()}"
ALLOWED = ["https://hooks.example.com/reviews", "http://[2606:4700::1]:8080/", "https://10.0.0.7/"]


@pytest.mark.parametrize(
    "target",
    [
        "https://hooks.example.com/reviews",
        "https://hooks.example.com/reviews/",
        "https://hooks.example.com/reviews/acme?token=1",
        "https://HOOKS.example.com:443/reviews/acme",
        "http://[2606:4700::1]:8080/x",
    ],
)
def test_a_target_below_an_allowed_url_is_taken(target: str) -> None:
    """Same scheme, host and port, and a path below."""
    Webhooks(ALLOWED, SECRET).check(target)


@pytest.mark.parametrize(
    "target",
    [
        "https://hooks.example.com/reviewsother",
        "https://hooks.example.com/",
        "https://hooks.example.com.evil.com/reviews",
        "https://hooks.example.com@evil.com/reviews",
        "https://user@hooks.example.com/reviews",
        "https://:pw@hooks.example.com/reviews",
        "https://hooks.example.com/reviews#x",
        "https://hooks.example.com/reviews/../admin",
        "https://hooks.example.com/reviews/%2e%2e/admin",
        "https://hooks.example.com/reviews/..%2fadmin",
        "http://hooks.example.com/reviews",
        "https://hooks.example.com:8443/reviews",
        "https://evil.com/https://hooks.example.com/reviews",
        "https://10.0.0.7/",
        "file:///etc/passwd",
        "//hooks.example.com/reviews",
        "/reviews",
        "",
        "https://[::1",
        "https://hooks.example.com:x/reviews",
    ],
)
def test_another_target_is_not(target: str) -> None:
    """The error names the header, and tells nothing of what is allowed."""
    with pytest.raises(BadRequest) as raised:
        Webhooks(ALLOWED, SECRET).check(target)
    assert raised.value.param == "x-tracerouter-webhook"
    assert "example.com" not in raised.value.message


def test_private_addresses_are_for_the_owner_to_allow() -> None:
    """With `private` an address of the own network may be a target, if it is listed."""
    Webhooks(ALLOWED, SECRET, private=True).check("https://10.0.0.7/x")
    with pytest.raises(BadRequest):
        Webhooks(ALLOWED, SECRET, private=True).check("https://10.0.0.8/x")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - an address that must not be called
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:  # noqa: FBT001 - a table
    """Neither the machine, its network, nor what an address of another kind wraps of them."""
    assert _is_public(ipaddress.ip_address(address)) is public


def test_the_signature_is_what_receivers_expect() -> None:
    """A library of the convention's takes it, and turns down another body, id, time or secret."""
    hooks, body, now = Webhooks(ALLOWED, SECRET), b'{"type": "review.approved"}', int(time.time())
    headers = hooks.signed("r-1", now, body)
    assert Webhook(SECRET).verify(body, headers) == {"type": "review.approved"}
    other = f"whsec_{base64.b64encode(b'y' * 32).decode()}"
    for secret, changed in (
        (SECRET, {"webhook-id": "r-2"}),
        (SECRET, {"webhook-timestamp": str(now + 1)}),
        (other, {}),
    ):
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(secret).verify(body, {**headers, **changed})


@pytest.mark.parametrize("secret", ["", "plain", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64!", SECRET[6:]])
def test_a_secret_that_is_none_is_named_with_the_fix(secret: str) -> None:
    """And is not shown."""
    with pytest.raises(ConfigError, match=r"webhooks\.secret: should be whsec_ .*openssl rand") as raised:
        Webhooks(ALLOWED, secret)
    assert not secret.removeprefix("whsec_") or secret not in str(raised.value)


@pytest.mark.parametrize("allowed", ["hooks.example.com", "ftp://a.b/", "https://a.b/?x=1", "https://u@a.b/", "/x", ""])
def test_a_wrong_prefix_is_named(allowed: str) -> None:
    """An owner who would allow nothing, or everything, is told at start."""
    with pytest.raises(ConfigError, match=r"webhooks\.allow: found"):
        Webhooks([allowed], SECRET)


def test_pauses_grow_and_a_day_has_more_than_ten_tries() -> None:
    """From seconds to two hours, and never at the same moment for all."""
    pauses = [_pause(tries) for tries in range(1, 30)]
    assert 3 < pauses[0] < 7
    assert max(pauses) < 9000
    assert len({_pause(3) for _ in range(5)}) == 5
    at, tries = 0.0, 0
    while at < GIVE_UP:
        tries += 1
        at += _pause(tries)
    assert 10 < tries < 30
