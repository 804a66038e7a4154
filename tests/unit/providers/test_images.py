"""How many tokens Claude takes for an image."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tracerouter.providers.images import image_tokens

LATER, EARLIER = "claude-opus-4-8", "claude-sonnet-4-5"


def part(raw: bytes, kind: str = "png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{b64encode(raw).decode()}"}}


def drawn(width: int, height: int, kind: str = "png", **how: Any) -> bytes:
    out = BytesIO()
    Image.new("L" if kind in {"png", "gif"} else "RGB", (width, height)).save(out, kind, **how)
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "later", "earlier"),
    [
        ((1, 1), 1, 1),
        ((200, 200), 64, 64),
        ((1000, 1000), 1296, 1296),
        ((1092, 1092), 1521, 1521),
        ((1568, 728), 1456, 1456),
        ((1928, 1928), 4761, 1521),
        ((29, 28), 2, 2),
        ((8000, 4), 92, 56),
    ],
)
def test_a_token_is_a_patch_of_what_the_model_sees(size: tuple[int, int], later: int, earlier: int) -> None:
    """The numbers are those of Anthropic's own examples, on either tier, whichever edge is the longer."""
    for width, height in (size, size[::-1]):
        image = part(drawn(width, height))
        assert (image_tokens(image, model=LATER), image_tokens(image, model=EARLIER)) == (later, earlier)


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_no_image_takes_more_than_its_model_gives_it(width: int, height: int) -> None:
    """Whatever the size, an image takes from one token to the bound, and a later model never takes fewer."""
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    image = part(header)
    assert 1 <= image_tokens(image, model=EARLIER) <= 1568
    assert image_tokens(image, model=EARLIER) <= image_tokens(image, model=LATER) <= 4784


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("png", {}),
        ("gif", {}),
        ("jpeg", {}),
        ("jpeg", {"progressive": True, "exif": b"Exif\x00\x00" + bytes(5000), "icc_profile": bytes(70_000)}),
        ("webp", {"lossless": True}),
        ("webp", {"lossless": False}),
        ("webp", {"exif": b"Exif\x00\x00" + bytes(50)}),
    ],
)
def test_each_format_tells_its_size(kind: str, how: dict[str, Any]) -> None:
    """Width and height are read from what is at the head of the formats that the API takes, as encoders write them."""
    assert image_tokens(part(drawn(300, 29, kind, **how), kind), model=LATER) == 11 * 2


@pytest.mark.parametrize(
    "url",
    [
        "https://img.example/a.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/png;base64,AAA",
        "data:image/png;base64,%%%",
        "data:image/svg+xml,<svg/>",
        "data:image/jpeg;base64,/9j/",
        "data:image/jpeg;base64,/9j///////////////////////////////",
        "data:image/webp;base64," + b64encode(b"RIFF1234WEBPVP9 " + bytes(20)).decode(),
        "data:image/gif;base64," + b64encode(b"GIF89a\x00\x00\x00\x00").decode(),
        None,
        7,
    ],
)
def test_an_image_whose_size_is_unknown_counts_as_the_largest(url: object) -> None:
    """What lies behind a URL, or is no image, costs an estimate the most that an image can cost."""
    image: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    assert (image_tokens(image, model=LATER), image_tokens(image, model=EARLIER)) == (4784, 1568)
    assert image_tokens({"type": "image_url", "image_url": url}, model=LATER) == 4784


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("claude-3-5-sonnet-20241022", 1568),
        ("claude-sonnet-4-20250514", 1568),
        ("claude-opus-4-6", 1568),
        ("claude-haiku-4-5-20251001", 1568),
        ("us.anthropic.claude-opus-4-1-v1:0", 1568),
        ("claude-opus-4-7", 4784),
        ("claude-opus-4.8", 4784),
        ("claude-sonnet-5-5", 4784),
        ("claude-fable-5", 4784),
        ("house-model", 4784),
    ],
)
def test_the_version_in_a_name_tells_the_tier(model: str, most: int) -> None:
    """Models since 4.7 see more; a name without a version counts as one of them."""
    assert image_tokens({"image_url": {"url": "https://img.example/a.png"}}, model=model) == most
