"""Labels by likeness to examples: a logistic regression on embeddings, with calibrated confidence."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from tracerouter.classifiers.corpus import STARTER, digest, read_examples
from tracerouter.errors import ConfigError
from tracerouter.types import Classification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracerouter.classifiers.model import Encoder, Model, Weights
    from tracerouter.types import Task

_log = logging.getLogger(__name__)


class ExamplesClassifier:
    """Says which label's examples a request is like, and how probable it is that this is right.

    Make one with :meth:`packaged` or :meth:`trained`. The embedding is loaded at the first request, in a
    thread (0.1 to 0.5 s), or before it by :meth:`warm`; from then on a call takes about a tenth of a
    millisecond and stays on the event loop. It abstains where ``other`` is most probable.
    """

    name: ClassVar[str] = "examples"
    """As spans and the cache of weights call it."""
    shipped: ClassVar[Path] = STARTER / "weights.npz"
    """Its weights for the starter taxonomy, made by ``python -m tracerouter.classifiers.train``."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._model: Model | None = None
        self._loading = threading.Lock()

    @classmethod
    def packaged(cls) -> Self:
        """Return the classifier of the starter taxonomy, which needs no training and no scikit-learn."""
        return cls(_load(cls.shipped))

    @classmethod
    def trained(cls, folders: Sequence[Path], cache: Path | None = None) -> Self:
        """Train on the starter taxonomy and the examples in `folders`, or take the result from the cache.

        A file with a starter label's name extends that label, a new name adds a label. Training blocks for
        some seconds, so do it at start.

        Args:
            folders: Each with a text file for every label.
            cache: Where weights are kept by a digest of their examples. None: ``tracerouter`` under
                ``$XDG_CACHE_HOME`` or ``~/.cache``.

        Raises:
            ConfigError: What :func:`~tracerouter.classifiers.corpus.read_examples` finds wrong with the
                files, or scikit-learn, which trains, is not installed.
        """
        examples = read_examples([STARTER, *folders])
        kept = (cache or _user_cache()) / f"{cls.name}-{digest(examples)}.npz"
        if kept.exists():
            try:
                return cls(_load(kept))
            except ConfigError as error:
                _log.warning("trained again: %s", error)
        try:
            from tracerouter.classifiers.train import fit  # noqa: PLC0415 - loads scikit-learn
        except ModuleNotFoundError:
            msg = "training on your own examples needs scikit-learn: pip install 'tracerouter[embeddings]'"
            raise ConfigError(msg) from None
        weights = fit(examples, cls.encoder())
        try:
            weights.save(kept)
        except OSError as error:
            _log.warning("%s can't be kept, so the next start trains again: %s", kept, error.strerror)
        return cls(weights)

    @property
    def version(self) -> str:
        """A short digest of the examples."""
        return self._weights.digest

    async def warm(self) -> None:
        """Load the embedding, so that the first request need not wait for it."""
        await asyncio.to_thread(self._loaded)

    async def classify(self, task: Task) -> Classification:
        """Return the most probable label, or abstain."""
        model = self._model
        if model is None:
            model = await asyncio.to_thread(self._loaded)
        label, probability = await self._best(model, task.text)
        return Classification(
            label=label,
            confidence=0.0 if label == "other" else probability,
            classifier=self.name,
            version=self.version,
        )

    @staticmethod
    def encoder() -> Encoder:
        """Load what reads the texts; takes some tenths of a second."""
        from tracerouter.classifiers.model import Reader  # noqa: PLC0415 - loads numpy and wordllama

        return Reader()

    async def _best(self, model: Model, text: str) -> tuple[str, float]:
        return model.best(text)

    def _loaded(self) -> Model:
        with self._loading:
            if self._model is None:
                from tracerouter.classifiers.model import Model  # noqa: PLC0415 - loads numpy and wordllama

                self._model = Model(self._weights, self.encoder())
            return self._model


class EmbeddingsClassifier(ExamplesClassifier):
    """As :class:`ExamplesClassifier`, but reads with a sentence embedding: more accurate, and milliseconds a text.

    It needs the extra ``embeddings``, and works in a thread, so that the event loop goes on.

    Raises:
        ConfigError: The extra is not installed.
    """

    name = "embeddings"
    shipped = STARTER / "embeddings.npz"

    def __init__(self, weights: Weights) -> None:
        from tracerouter.classifiers.sentences import check_installed  # noqa: PLC0415 - loads numpy

        check_installed()
        super().__init__(weights)

    @staticmethod
    def encoder() -> Encoder:
        """Load what reads the texts."""
        from tracerouter.classifiers.sentences import SentenceReader  # noqa: PLC0415 - loads onnxruntime

        return SentenceReader()

    async def _best(self, model: Model, text: str) -> tuple[str, float]:
        return await asyncio.to_thread(model.best, text)


def _load(file: Path) -> Weights:
    from tracerouter.classifiers.model import Weights  # noqa: PLC0415 - loads numpy

    return Weights.load(file)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracerouter"
