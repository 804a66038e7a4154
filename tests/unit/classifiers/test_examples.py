"""The examples classifier: what is shipped, and what users add."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tracerouter.classifiers import ExamplesClassifier
from tracerouter.classifiers.corpus import STARTER, digest, read_examples
from tracerouter.classifiers.model import Model, Reader, Weights
from tracerouter.classifiers.train import expected_calibration_error, fit, reliability, temperature_of
from tracerouter.errors import ConfigError
from tracerouter.types import Task

if TYPE_CHECKING:
    from pathlib import Path

HELD_OUT = [
    ("summarize", "Could you sum up the minutes underneath? I only need the three decisions that were made."),
    ("summarize", "tldr of this report for the board"),
    (
        "extract",
        "Get the supplier, invoice date and gross total from the scanned text and return them as JSON",
    ),
    ("extract", "list all e-mail addresses and phone numbers that appear in the document"),
    ("classify_ticket", 'Is this message a complaint or a question? "why was my parcel opened"'),
    (
        "classify_ticket",
        "Categorize the ticket as network, hardware or licence: screen stays dark after docking",
    ),
    ("translate", "what's the Portuguese word for invoice"),
    ("translate", "Translate the following into Norwegian: the shop is closed on Sundays"),
    ("rewrite", "Make this sentence sound more polite: give me the report now"),
    ("rewrite", "Please correct the spelling in this paragraph: we recieved teh goods yesteday"),
    ("draft_reply", "Write an email to our landlord asking him to repair the front door"),
    ("draft_reply", 'Draft an answer to this customer: "is the blue one back in stock?"'),
    ("answer_question", "Which river flows through Vienna?"),
    (
        "answer_question",
        "Which gas makes up most of the air? A. Oxygen B. Nitrogen C. Argon D. Helium Answer:",
    ),
    ("code", "Write a Python script that renames all files in a directory to lower case"),
    ("code", "TypeError: undefined is not a function, what's wrong with my javascript"),
    ("sql", "SQL query that returns the number of orders per customer from the orders table"),
    ("sql", "why is my LEFT JOIN returning duplicate rows"),
    (
        "reasoning",
        "Ann has 14 apples, gives 5 to Bob and buys twice as many as she has left. How many has she now?",
    ),
    ("reasoning", "A cyclist rides 3 hours at 18 km/h and 2 hours at 12 km/h. What was her average speed?"),
    ("data_analysis", "Analyse the monthly revenue in this table and tell me which region is falling behind"),
    ("brainstorm", "Give me ten names for a new ice cream parlour"),
    ("legal_review", "Check this lease agreement for clauses that put the tenant at a disadvantage"),
    ("legal_review", "Does the contract let us terminate early if the supplier breaches it?"),
    ("smalltalk", "hey, how are you doing today"),
    ("account_service", "my debit card got stolen, please block it right away"),
    ("account_service", "how much is left on my savings account"),
    ("assistant_action", "set a timer for half an hour"),
    ("assistant_action", "book a table for four at the greek place tomorrow evening"),
]
UNCLEAR = ["zxcv", "that other one again", "...", "generate a picture of a castle at night", "hmm what"]
PIRATE = "\n".join(
    f"arr matey, {what}"
    for what in (
        "hoist the mainsail and fetch the grog",
        "where be the buried treasure",
        "the kraken be after our ship",
        "swab the deck, ye scurvy dog",
        "walk the plank at dawn",
        "shiver me timbers, land ahoy",
        "me parrot wants a biscuit",
        "load the cannons, starboard side",
    )
)


@pytest.fixture(scope="module")
def packaged() -> ExamplesClassifier:
    """The classifier as it is shipped."""
    return ExamplesClassifier.packaged()


@pytest.fixture(scope="module")
def reader() -> Reader:
    """The embedding, loaded once."""
    return Reader()


def folder_of(path: Path, **files: str) -> Path:
    """Write one label file for each keyword."""
    path.mkdir(exist_ok=True)
    for label, text in files.items():
        (path / f"{label}.txt").write_text(text, encoding="utf-8")
    return path


def test_the_shipped_weights_are_those_of_the_shipped_examples() -> None:
    """Who edits an example must run ``python -m tracerouter.classifiers.train``."""
    assert ExamplesClassifier.packaged().version == digest(read_examples([STARTER]))


async def test_held_out_requests_get_the_right_label_mostly(packaged: ExamplesClassifier) -> None:
    """Of sentences that stand in no example file at least four in five are labelled right."""
    known = {text for texts in read_examples([STARTER]).values() for text in texts}
    assert known.isdisjoint(text for _, text in HELD_OUT)
    found = [(label, text, await packaged.classify(Task.chat(text))) for label, text in HELD_OUT]
    wrong = [(label, text, got.label) for label, text, got in found if got.label != label]
    assert len(wrong) <= len(HELD_OUT) / 5, wrong


async def test_sure_answers_are_rarely_wrong(packaged: ExamplesClassifier) -> None:
    """Where it claims 0.7 or more on held-out sentences, nine in ten are right, and it claims it often."""
    answers = [(label, await packaged.classify(Task.chat(text))) for label, text in HELD_OUT]
    sure = [label == got.label for label, got in answers if got.confidence >= 0.7]
    assert len(sure) >= len(HELD_OUT) / 3
    assert sum(sure) / len(sure) >= 0.9


async def test_what_is_unclear_is_never_sure_and_mostly_abstained_from(packaged: ExamplesClassifier) -> None:
    """Requests without a clear wish end as ``other`` with confidence 0, or at least in doubt."""
    found = [await packaged.classify(Task.chat(text)) for text in UNCLEAR]
    assert all(each.confidence < 0.7 for each in found), found
    assert sum(each.abstained for each in found) >= len(UNCLEAR) / 2
    assert all(each.confidence == 0 for each in found if each.label == "other")


@pytest.mark.parametrize("text", ["", "   \n\t", "\u2003"])
async def test_nothing_said_is_an_abstention(packaged: ExamplesClassifier, text: str) -> None:
    """A blank request is no label's."""
    assert (await packaged.classify(Task.chat(text))).abstained


@pytest.mark.parametrize("text", ["\x00", "\U0001f600" * 3000, "\ud7ff", "\u0301" * 50, "x" * 900_000])
async def test_odd_text_gets_a_probability(packaged: ExamplesClassifier, text: str) -> None:
    """Whatever is sent, confidence is between 0 and 1."""
    assert 0 <= (await packaged.classify(Task.chat(text))).confidence <= 1


async def test_a_long_paste_does_not_drown_the_request(packaged: ExamplesClassifier) -> None:
    """A request before a long document gets its label; after one, it at least gets no wrong label surely."""
    paste = "The valve was replaced in March and the pressure has been stable since then. " * 100
    requests = {
        "translate": "Translate this into Spanish",
        "summarize": "Summarize this",
        "extract": "Extract all dates",
        "draft_reply": "Draft a reply to this email",
    }
    for label, request in requests.items():
        assert (await packaged.classify(Task.chat(f"{request}: {paste}"))).label == label
        after = await packaged.classify(Task.chat(f"{paste}\n\n{request}"))
        assert after.label == label or after.confidence < 0.7


async def test_first_requests_at_once_share_one_loading() -> None:
    """Concurrent first requests all get an answer, and the same one."""
    fresh = ExamplesClassifier.packaged()
    tasks = [fresh.classify(Task.chat("set an alarm for nine")) for _ in range(8)]
    assert len(set(await asyncio.gather(*tasks))) == 1


def test_importing_the_room_loads_nothing_heavy() -> None:
    """A service that uses no examples classifier does not pay for one."""
    code = (
        "import sys, tracerouter.classifiers;"
        "heavy = ('numpy', 'wordllama', 'sklearn', 'scipy', 'datafog', 'onnxruntime');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


async def test_a_users_folder_adds_and_extends_labels_and_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file is a new label, a known name extends it, and the same examples are trained once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours = folder_of(tmp_path / "ours", pirate=PIRATE, translate="# only one\nput it in pig latin for me")
    trained = ExamplesClassifier.trained([ours])
    assert (await trained.classify(Task.chat("arr matey, the treasure be on our ship"))).label == "pirate"
    assert (await trained.classify(Task.chat("set an alarm for nine"))).label == "assistant_action"
    assert trained.version != ExamplesClassifier.packaged().version

    (kept,) = (tmp_path / "cache" / "tracerouter").iterdir()
    assert trained.version in kept.name
    weights = Weights.load(kept)
    assert {"translate", "other", "pirate"} < set(weights.labels)
    assert weights.temperature != 1.0
    monkeypatch.setattr("tracerouter.classifiers.train.fit", lambda *_: pytest.fail("trained twice"))
    again = ExamplesClassifier.trained([ours])
    question = Task.chat("walk the plank")
    assert (await again.classify(question)).label == (await trained.classify(question)).label


def test_a_damaged_cache_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken file in the cache costs time and a warning, not the start."""
    ours = folder_of(tmp_path / "ours", pirate=PIRATE)
    shipped = Weights.load(STARTER / "weights.npz")
    monkeypatch.setattr("tracerouter.classifiers.train.fit", lambda *_: shipped)
    kept = tmp_path / "cache" / f"examples-{digest(read_examples([STARTER, ours]))}.npz"
    kept.parent.mkdir()
    kept.write_bytes(b"PK\x03\x04 half a file")
    ExamplesClassifier.trained([ours], kept.parent)
    assert "trained again" in caplog.text
    assert Weights.load(kept).labels == shipped.labels


def test_training_without_scikit_learn_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing extra is named as pip takes it."""
    monkeypatch.delitem(sys.modules, "tracerouter.classifiers.train")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'tracerouter\[embeddings\]'"):
        ExamplesClassifier.trained([folder_of(tmp_path / "ours", pirate=PIRATE)], tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"pirate\.txt: holds no examples; write some"),
        (b"# only a comment\n\n", r"pirate\.txt: holds no examples"),
        (b"one\ntwo\ntwo\nthree\nfour\n", r"pirate\.txt: label 'pirate' has 4 examples; give it at least 5"),
        (b"fine\nna\xefve\n", r"pirate\.txt: is not UTF-8 \(byte 7\); save it as UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_its_fix(tmp_path: Path, content: bytes, complaint: str) -> None:
    """An owner is told which file is wrong and what to do about it."""
    (tmp_path / "pirate.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        ExamplesClassifier.trained([tmp_path], tmp_path)


def test_a_folder_without_examples_is_named(tmp_path: Path) -> None:
    """A mistyped folder is not taken for an empty one."""
    with pytest.raises(ConfigError, match=r"nowhere: holds no \.txt files"):
        ExamplesClassifier.trained([tmp_path / "nowhere"])


def test_training_twice_gives_the_same_weights(reader: Reader, tmp_path: Path) -> None:
    """The same examples make the same file, and it holds a temperature."""
    examples = read_examples([STARTER])
    some = {label: examples[label][:20] for label in ("code", "rewrite", "sql", "translate")}
    files = [tmp_path / name for name in ("one.npz", "two.npz")]
    for file in files:
        fit(some, reader).save(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Weights.load(files[0]).temperature > 0


def test_saved_weights_answer_as_those_in_memory(reader: Reader, tmp_path: Path) -> None:
    """What is kept in half precision changes no label and no confidence by more than a hundredth."""
    examples = read_examples([STARTER])
    some = {label: examples[label][:20] for label in ("code", "rewrite", "sql", "translate")}
    weights = fit(some, reader)
    weights.save(tmp_path / "kept.npz")
    fresh, kept = Model(weights, reader), Model(Weights.load(tmp_path / "kept.npz"), reader)
    for _, text in HELD_OUT:
        (label, confidence), (kept_label, kept_confidence) = fresh.best(text), kept.best(text)
        assert label == kept_label
        assert confidence == pytest.approx(kept_confidence, abs=0.01)


def test_temperature_scaling_finds_the_temperature_that_was_applied() -> None:
    """Labels drawn from softmax(scores / 2) ask for a temperature of 2, and then confidence is true."""
    rng = np.random.default_rng(7)
    scores = rng.normal(scale=3, size=(6000, 4))
    chances = np.exp(scores / 2)
    chances /= chances.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in chances])
    assert temperature_of(scores, truth) == pytest.approx(2, rel=0.05)
    right = chances.argmax(axis=1) == truth
    assert expected_calibration_error(chances.max(axis=1), right) < 0.02


def test_calibration_error_is_the_gap_between_claim_and_truth() -> None:
    """Claiming 0.9 and being right half the time is an error of 0.4."""
    claimed = np.full(10, 0.9)
    assert expected_calibration_error(claimed, np.arange(10) % 2 == 0) == pytest.approx(0.4)


def test_reliability_is_measured_on_what_was_held_back(reader: Reader) -> None:
    """Three labels that are easy to tell apart come out accurate, with every figure in its range."""
    examples = read_examples([STARTER])
    three = {label: examples[label][:30] for label in ("code", "draft_reply", "translate")}
    found = reliability(three, reader)
    assert found.n == 90
    assert found.accuracy > 0.75
    assert found.ece_interval[0] <= found.ece_interval[1]
    assert 0 <= found.ece <= 0.25
    assert set(found.recall) == set(three)
