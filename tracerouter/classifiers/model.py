"""The model of :class:`~tracerouter.classifiers.ExamplesClassifier`: how a text is read, and the weights.

A text is read as one or more vectors that say what it is about, and as the tokens that occur in it at all. A
multinomial logistic regression weighs them. :class:`Reader`'s vectors are the mean of the tokens' static embeddings,
and the same of the first tokens (people start with what they want, then paste).
"""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
import wordllama

from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.intp]

TEXT_CHARS = 250
"""How much of a text is read (characters). The tokenizer takes 0.3 µs for each: most of a call's time."""
_TAIL_CHARS = 80
_FIRST_TOKENS = 8
_TINY = 1e-9  # keeps an unused token's zeros from dividing by zero


class Reading(NamedTuple):
    """What the model knows of a text."""

    means: Floats
    """The vectors, each of length 1, one after the other."""
    tokens: Ints
    """The distinct tokens, ascending."""


class Encoder(Protocol):
    """Reads texts; it is all in which one classifier by examples differs from another."""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    def __call__(self, text: str) -> Reading:
        """Read a text that is not blank."""
        ...


class Reader:
    """Reads texts with wordllama's tokenizer and 256-d embedding (32 MB; 0.2 to 0.5 s to load)."""

    def __init__(self) -> None:
        here = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=here, disable_download=True)
        self._tokenizer = model.tokenizer
        self._tokenizer.no_padding()
        # tokens of equal length: otherwise a few rare ones would decide what a text is about
        lengths = np.linalg.norm(model.embedding, axis=1, keepdims=True)
        self._embedding: Floats = model.embedding / np.maximum(lengths, _TINY)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self._embedding)

    def __call__(self, text: str) -> Reading:
        """Read the first and last characters of `text` (:data:`TEXT_CHARS`), without regard to case.

        `text` must not be blank.
        """
        encoded = self._tokenizer.encode(ends(text), add_special_tokens=False).ids
        rows = self._embedding[encoded]
        means = np.concatenate((direction(rows), direction(rows[:_FIRST_TOKENS])))
        return Reading(means, np.array(sorted(set(encoded)), dtype=np.intp))


@dataclass(frozen=True, slots=True)
class Weights:
    """A trained model: plain arrays, so that nothing but numpy is needed to use it."""

    labels: tuple[str, ...]
    means: Floats
    """By :attr:`Reading.means` and label."""
    tokens: Ints
    """The tokens that occur in the examples, ascending."""
    token_weights: Floats
    """By `tokens` and label; every other token weighs nothing."""
    bias: Floats
    temperature: float
    """Divides the scores so that the probabilities are calibrated."""
    digest: str
    """Names the examples that it was trained on."""

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: `file` is missing or no such file.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(
                    labels=tuple(map(str, arrays["labels"])),
                    means=arrays["means"].astype(np.float32),
                    tokens=arrays["tokens"].astype(np.intp),
                    token_weights=arrays["token_weights"].astype(np.float32),
                    bias=arrays["bias"],
                    temperature=float(arrays["temperature"]),
                    digest=str(arrays["digest"]),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            msg = f"{file}: can't be read as a classifier's weights: {error}"
            raise ConfigError(msg) from None

    def save(self, file: Path) -> None:
        """Write to `file` at once: another process sees the old file or the new one, never a half.

        Raises:
            OSError: The folder can't be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as out:
                np.savez_compressed(
                    out,
                    labels=np.array(self.labels),
                    means=self.means.astype(np.float16),
                    tokens=self.tokens.astype(np.int32),
                    token_weights=self.token_weights.astype(np.float16),
                    bias=self.bias,
                    temperature=np.array(self.temperature),
                    digest=np.array(self.digest),
                )
            Path(name).chmod(0o644)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class Model:
    """Weights laid out for speed: a row for every token of the vocabulary (2 MB for 16 labels)."""

    def __init__(self, weights: Weights, reader: Encoder) -> None:
        self._weights = weights
        self._read = reader
        self._rows = np.zeros((reader.vocabulary, len(weights.labels)), dtype=np.float32)
        self._rows[weights.tokens] = weights.token_weights

    def best(self, text: str) -> tuple[str, float]:
        """Return the most probable label and its probability; ``("other", 0.0)`` for a blank text."""
        if not text or text.isspace():
            return "other", 0.0
        weights = self._weights
        means, tokens = self._read(text)
        scores = means @ weights.means + self._rows[tokens].sum(axis=0) / len(tokens) ** 0.5 + weights.bias
        top = int(scores.argmax())
        odds = np.exp((scores - scores[top]) / weights.temperature)
        return weights.labels[top], 1.0 / float(odds.sum())


def ends(text: str) -> str:
    """Return the first and last characters of `text` (:data:`TEXT_CHARS`), in lower case and with single spaces."""
    if len(text) > TEXT_CHARS:
        text = f"{text[: TEXT_CHARS - _TAIL_CHARS]} {text[-_TAIL_CHARS:]}"
    return " ".join(text.lower().split())


def direction(rows: Floats) -> Floats:
    """Return the mean of `rows` at length 1 (so their sum will do)."""
    total: Floats = np.add.reduce(rows)
    return total / max(math.sqrt(total @ total), _TINY)
