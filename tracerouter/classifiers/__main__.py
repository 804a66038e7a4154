"""``python -m tracerouter.classifiers``: how far a classifier by examples can be trusted.

Without rows of your own: by cross-validation on the examples, the packaged ones and those of the folders named. With
--train and --test: trained on some labelled rows, judged on others, and timed on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tracerouter.classifiers import EmbeddingsClassifier, ExamplesClassifier
from tracerouter.classifiers.corpus import STARTER, read_examples
from tracerouter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracerouter.classifiers.corpus import Examples
    from tracerouter.classifiers.model import Encoder
    from tracerouter.classifiers.train import Reliability

_KINDS = {kind.name: kind for kind in (ExamplesClassifier, EmbeddingsClassifier)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and tell it."""
    parser = argparse.ArgumentParser(
        prog="python -m tracerouter.classifiers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m tracerouter.classifiers my_labels/ --classifier embeddings --json measured.json",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="examples of your own")
    parser.add_argument("--classifier", choices=_KINDS, default="examples", help="(default %(default)s)")
    parser.add_argument(
        "--train", type=Path, metavar="FILE", help='rows {"text", "label"}, JSON lines; no label: other'
    )
    parser.add_argument("--test", type=Path, metavar="FILE", help="other rows of the same kind")
    parser.add_argument("--per-label", type=int, default=50, help="rows of --train, at most (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    asked = parser.parse_args(argv)
    if (asked.train is None) != (asked.test is None):
        parser.error("--train and --test go together")
    try:
        found = _measured(asked)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error.name} is missing: pip install 'tracerouter[embeddings]'\n")
        return 2
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if asked.json:
        asked.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _measured(asked: argparse.Namespace) -> dict[str, Any]:
    from tracerouter.classifiers.train import folds_of, reliability, reliability_on  # noqa: PLC0415 - extra `embeddings`

    encoder = _KINDS[asked.classifier].encoder()
    if asked.train is None:
        examples = read_examples([STARTER, *asked.folders])
        found, how = reliability(examples, encoder), f"{folds_of(examples)}-fold cross-validation"
    else:
        examples, texts = _rows(asked.train, asked.per_label), _rows(asked.test)
        unknown = texts.keys() - examples.keys()
        if unknown:
            msg = f"{asked.test}: {min(unknown)!r} is no label of {asked.train}"
            raise ConfigError(msg)
        found, how = reliability_on(texts, examples, encoder), f"trained on {sum(map(len, examples.values()))} others"
    micros = _micros(encoder, examples)
    _print(asked.classifier, how, found, micros, examples if asked.train is None else None)
    return {"classifier": asked.classifier, "how": how, "encoder_us": micros, **found._asdict()}


def _rows(file: Path, most: int | None = None) -> Examples:
    """Read the first texts of each label."""
    texts: dict[str, dict[str, None]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            texts.setdefault(row["label"] or "other", {})[row["text"]] = None
        except (ValueError, LookupError, TypeError):
            msg = f"{file}:{number}: needs a JSON object with `text` and `label`"
            raise ConfigError(msg) from None
    return {label: tuple(islice(texts[label], most)) for label in sorted(texts)}


def _micros(encoder: Encoder, examples: Examples) -> float:
    """Return the median time that reading one text takes (µs), over some of the examples."""
    times = []
    for text in islice((text for label in examples for text in examples[label]), 400):
        started = time.perf_counter_ns()
        encoder(text)
        times.append(time.perf_counter_ns() - started)
    return sorted(times)[len(times) // 2] / 1e3


def _print(name: str, how: str, found: Reliability, micros: float, examples: Examples | None) -> None:
    console = Console()
    if examples is not None:  # rows of one's own may have hundreds of labels
        table = Table("label", "examples", "recall")
        for label, recall in found.recall.items():
            table.add_row(label, str(len(examples[label])), f"{recall:.2f}")
        console.print(table)
    low, high = found.ece_interval
    console.print(
        f"{name}, {how}\nn {found.n}\naccuracy {found.accuracy:.3f}\n"
        f"ECE {found.ece:.3f} (95 %: {low:.3f} to {high:.3f})\n"
        f"sure of {found.sure:.1%}, then right {found.sure_accuracy:.1%}\nreading a text: {micros:.0f} µs",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
