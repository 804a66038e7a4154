"""``python -m tracerouter.classifiers``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.classifiers.test_examples import PIRATE, folder_of
from tracerouter.classifiers import __main__ as command
from tracerouter.classifiers.corpus import STARTER, read_examples

if TYPE_CHECKING:
    from pathlib import Path

    from tracerouter.classifiers.corpus import Examples

LABELS = ("code", "draft_reply", "translate")


def rows(file: Path, examples: Examples, start: int, stop: int) -> Path:
    told = [{"text": text, "label": label} for label in LABELS for text in examples[label][start:stop]]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in told))
    return file


def test_it_judges_on_rows_that_it_was_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures come from the test rows alone, and are printed and written."""
    examples = read_examples([STARTER])
    train = rows(tmp_path / "train.jsonl", examples, 0, 40)
    test = rows(tmp_path / "test.jsonl", examples, 40, 55)
    out = tmp_path / "found.json"
    code = command.main(["--train", str(train), "--test", str(test), "--per-label", "20", "--json", str(out)])
    assert code == 0
    found = json.loads(out.read_text())
    assert (found["classifier"], found["n"], found["how"]) == ("examples", 45, "trained on 60 others")
    assert found["accuracy"] > 0.7
    assert found["encoder_us"] > 0
    low, high = found["ece_interval"]
    assert 0 <= low <= high <= 1
    told = capsys.readouterr().out
    assert f"n {found['n']}" in told
    assert f"accuracy {found['accuracy']:.3f}" in told


@pytest.mark.filterwarnings("error")
def test_it_cross_validates_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without rows of one's own the examples are judged, in no more parts than the smallest label has texts."""
    asked: list[Any] = []
    examples = read_examples([STARTER])

    def few(folders: list[Path]) -> Examples:
        asked.extend(folders)
        return {**{label: examples[label][:20] for label in LABELS[:2]}, **read_examples(folders[1:])}

    monkeypatch.setattr(command, "read_examples", few)
    ours = folder_of(tmp_path / "ours", pirate=PIRATE)
    assert command.main([str(ours)]) == 0
    assert asked == [STARTER, ours]
    told = capsys.readouterr().out
    assert "8-fold cross-validation" in told
    assert "pirate" in told
    assert "n 48" in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"}', "test.jsonl:2: needs a JSON object with `text` and `label`"),
        ("nonsense", "test.jsonl:2: needs a JSON object"),
        ('{"text": "x", "label": "poem"}', "'poem' is no label of"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    """A mistake ends in a sentence and exit code 2."""
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text('{"text": "a", "label": "code"}\n')
    test.write_text(f'{{"text": "b", "label": "code"}}\n{line}\n')
    assert command.main(["--train", str(train), "--test", str(test)]) == 2
    assert said in capsys.readouterr().err


def test_train_and_test_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows to learn from need others to be judged on."""
    with pytest.raises(SystemExit):
        command.main(["--train", str(tmp_path / "x")])
    assert "--train and --test go together" in capsys.readouterr().err
