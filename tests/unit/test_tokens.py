"""Tokens are counted offline, exactly as OpenAI's cookbook counts them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import tiktoken

from tracerouter import tokens

if TYPE_CHECKING:
    from pathlib import Path


def cookbook(messages: list[dict[str, str]]) -> int:
    """Count as the function ``num_tokens_from_messages`` of OpenAI's cookbook does for models since gpt-4."""
    encoding = tiktoken.get_encoding("o200k_base")
    total = 0
    for message in messages:
        total += 3
        for key, value in message.items():
            total += len(encoding.encode(value)) + (1 if key == "name" else 0)
    return total + 3


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "What does VAT stand for?"}],
        [{"role": "user", "content": ""}],
        [
            {"role": "system", "content": "You are a helpful, pattern-following assistant."},
            {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
            {"role": "system", "name": "example_assistant", "content": "Things working well together."},
            {"role": "user", "content": "Grüße, 東京! 🙂 `x = [1, 2]`"},
        ],
    ],
)
def test_a_request_counts_as_in_the_cookbook(messages: list[dict[str, str]]) -> None:
    """Roles, contents and names count as OpenAI says that they do, with 3 a message and 3 for the answer."""
    assert tokens.count("") == 0  # and the rank file is in place
    assert tokens.count_request({"messages": messages}) == cookbook(messages)


def test_parts_and_tools_count() -> None:
    """Text parts count as their text, images by their detail and not their size; calls and definitions add to it."""
    tokens.count("")
    plain: dict[str, Any] = {"messages": [{"role": "user", "content": "one"}]}
    for detail, more in ((None, 765), ("high", 765), ("low", 85)):
        image = {"type": "image_url", "image_url": {"url": "data:" + "x" * 5000, "detail": detail}}
        seen = {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, image]}]}
        assert tokens.count_request(seen) == tokens.count_request(plain) + more
    called = {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up"}}]}]}
    silent = {"messages": [{"role": "assistant", "content": None}]}
    assert tokens.count_request(called) > tokens.count_request(silent)
    assert tokens.count_request({**plain, "tools": [{"type": "function"}]}) > tokens.count_request(plain)


def test_special_tokens_are_plain_text() -> None:
    """A prompt that spells a special token is counted, not obeyed and not an error."""
    assert tokens.count("<|endoftext|>") > 1


def test_a_megabyte_of_one_letter_is_counted_quickly() -> None:
    """The input that takes tiktoken minutes takes a second, and each cut adds one token at most."""
    started = time.process_time()
    found = tokens.count("a" * 1_000_000)
    assert time.process_time() - started < 10
    pieces = 1_000_000 // tokens.CHARACTERS_PER_PIECE
    assert found == pieces * tokens.count("a" * tokens.CHARACTERS_PER_PIECE)
    assert 100_000 < found < 130_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of one's own, and no choice of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    return tmp_path / "tracerouter" / "tiktoken"


def test_the_rank_file_is_written_once(home: Path) -> None:
    """The file that tiktoken looks for is written whole, named as it names it, and not again the next time."""
    tokens._place_rank_file()
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(home)
    written = {path.name: path.stat().st_mtime_ns for path in home.iterdir()}
    address = "https://openaipublic.blob.core.windows.net/encodings/"
    assert set(written) == {hashlib.sha1(f"{address}o200k_base.tiktoken".encode()).hexdigest()}  # noqa: S324 - tiktoken's choice
    del os.environ["TIKTOKEN_CACHE_DIR"]
    tokens._place_rank_file()
    assert {path.name: path.stat().st_mtime_ns for path in home.iterdir()} == written


def test_a_cache_folder_that_cannot_be_written_is_no_hindrance(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache can't be written, the process writes into a folder of its own, and counts."""
    (tmp_path / "tracerouter").write_text("a file stands where the folder should")
    monkeypatch.setattr("tempfile.tempdir", None)
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    told = "tokens.count('hello world'), os.environ['TIKTOKEN_CACHE_DIR']"
    code = f"from tracerouter import tokens; import os; print({told})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)  # noqa: S603
    counted, folder = run.stdout.split()
    assert counted == "2"
    assert folder.startswith(str(own))


def test_a_folder_of_the_users_own_is_left_alone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has set ``TIKTOKEN_CACHE_DIR`` keeps it, and nothing is written anywhere."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "mine"))
    tokens._place_rank_file()
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "mine")
    assert not home.exists()
