"""Train the classifiers by examples, and measure how far they can be trusted. Needs the extra ``embeddings``.

``python -m tracerouter.classifiers.train`` writes the weights that are shipped; ``python -m tracerouter.classifiers``
tells how reliable they are.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from tracerouter.classifiers.corpus import MIN_EXAMPLES, STARTER, digest, read_examples
from tracerouter.classifiers.examples import EmbeddingsClassifier, ExamplesClassifier
from tracerouter.classifiers.model import Model, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tracerouter.classifiers.corpus import Examples
    from tracerouter.classifiers.model import Encoder

    Floats = NDArray[np.float64]
    Ints = NDArray[np.intp]

SURE = 0.7
"""The confidence from which the table counts a label as sure: the default of policies and chains."""

_STRENGTH = 10.0  # inverse of the L2 penalty; 3, 10 and 30 cross-validate alike
_FOLDS = 10
_BINS = 10
_RESAMPLES = 1000
_SEED = 0


class Reliability(NamedTuple):
    """How far a classifier can be trusted, on examples that it was not trained on."""

    n: int
    accuracy: float
    """The share of right labels, whatever their confidence; ``other`` is a label here."""
    ece: float
    """Expected calibration error: how far confidence is from accuracy, in the mean over equal bins."""
    ece_interval: tuple[float, float]
    """95 %, by bootstrap over the examples."""
    sure: float
    """The share with a label of at least :data:`SURE` that is not ``other``."""
    sure_accuracy: float
    """The share of right labels among those."""
    recall: dict[str, float]
    """By label."""


def fit(examples: Examples, reader: Encoder) -> Weights:
    """Train a classifier; equal examples give equal weights."""
    features, truth, tokens = _features(examples, reader)
    model, temperature = _fit(features, truth)
    coefficients = model.coef_.T.astype(np.float32)
    return Weights(
        labels=tuple(examples),
        means=coefficients[: -len(tokens)],
        tokens=tokens,
        token_weights=coefficients[-len(tokens) :],
        bias=model.intercept_.astype(np.float32),
        temperature=round(temperature, 4),
        digest=digest(examples),
    )


def reliability(examples: Examples, reader: Encoder) -> Reliability:
    """Train and calibrate on all parts but one and look at that, for each of :func:`folds_of` parts.

    The examples are those that the features and the penalty were chosen on, so what is new may fare worse.
    """
    features, truth, _ = _features(examples, reader)
    chances = np.zeros((len(truth), len(examples)))
    for train, test in _folds(folds_of(examples)).split(features, truth):
        model, temperature = _fit(features[train], truth[train])
        chances[test] = softmax(model.decision_function(features[test]) / temperature, axis=1)
    return _judged(tuple(examples), truth, chances.argmax(axis=1), chances.max(axis=1))


def folds_of(examples: Examples) -> int:
    """Return into how many parts examples are cut: ten, or as many as the smallest label has, so that each has some."""
    return min(_FOLDS, *(len(texts) for texts in examples.values()))


def reliability_on(texts: Examples, examples: Examples, reader: Encoder) -> Reliability:
    """Train on `examples`, and look at `texts`, none of which may be one of them; their labels must be among theirs."""
    model, labels = Model(fit(examples, reader), reader), tuple(examples)
    said = [model.best(text) for label in texts for text in texts[label]]
    truth = np.array([labels.index(label) for label in texts for _ in texts[label]])
    found = np.array([labels.index(label) for label, _ in said])
    return _judged(labels, truth, found, np.array([confidence for _, confidence in said]))


def _judged(labels: tuple[str, ...], truth: Ints, found: Ints, confidence: Floats) -> Reliability:
    right = found == truth
    sure = (confidence >= SURE) & (np.array(labels)[found] != "other")
    draws = np.random.default_rng(_SEED).integers(len(truth), size=(_RESAMPLES, len(truth)))
    errors = [expected_calibration_error(confidence[draw], right[draw]) for draw in draws]
    low, high = np.quantile(errors, [0.025, 0.975])
    return Reliability(
        n=len(truth),
        accuracy=float(right.mean()),
        ece=expected_calibration_error(confidence, right),
        ece_interval=(float(low), float(high)),
        sure=float(sure.mean()),
        sure_accuracy=float(right[sure].mean()) if sure.any() else float("nan"),
        recall={label: float(right[truth == i].mean()) for i, label in enumerate(labels) if (truth == i).any()},
    )


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Return the mean over ten equal bins of |accuracy - mean confidence|, weighted by size.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def temperature_of(scores: Floats, truth: Ints) -> float:
    """Return the temperature for which softmax(scores / temperature) has the least negative log-likelihood.

    Guo et al. (2017), section 4.2. `scores` must be of examples that the model was not trained on.
    """

    def loss(log_temperature: float) -> float:
        chances = log_softmax(scores / np.exp(log_temperature), axis=1)
        return -float(chances[np.arange(len(truth)), truth].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def main(argv: Sequence[str] | None = None) -> None:
    """Regenerate the shipped weights."""
    parser = argparse.ArgumentParser(prog="python -m tracerouter.classifiers.train", description=__doc__)
    parser.parse_args(argv)
    examples = read_examples([STARTER])
    for classifier in (ExamplesClassifier, EmbeddingsClassifier):
        fit(examples, classifier.encoder()).save(classifier.shipped)
        sys.stdout.write(f"wrote {classifier.shipped}\n")


def _fit(features: csr_matrix, truth: Ints) -> tuple[LogisticRegression, float]:
    scores = np.zeros((len(truth), len(np.unique(truth))))
    # a reliability fold may leave a small label one example less than MIN_EXAMPLES
    for train, test in _folds(min(MIN_EXAMPLES, int(np.bincount(truth).min()))).split(features, truth):
        scores[test] = _regression().fit(features[train], truth[train]).decision_function(features[test])
    return _regression().fit(features, truth), temperature_of(scores, truth)


def _features(examples: Examples, reader: Encoder) -> tuple[csr_matrix, Ints, Ints]:
    """Return a row for each example, its label's index, and the token of each column after the means."""
    truth = np.repeat(np.arange(len(examples)), [len(texts) for texts in examples.values()])
    readings = [reader(text) for texts in examples.values() for text in texts]
    sizes = np.array([len(reading.tokens) for reading in readings])
    tokens, columns = np.unique(np.concatenate([reading.tokens for reading in readings]), return_inverse=True)
    # a row of length 1 like the means, so that none of the three ways of reading outweighs the others
    values = np.repeat(sizes**-0.5, sizes)
    occurs = csr_matrix((values, columns, np.concatenate(([0], sizes.cumsum()))))
    means = csr_matrix(np.array([reading.means for reading in readings]))
    return hstack([means, occurs], format="csr"), truth, tokens


def _folds(count: int) -> StratifiedKFold:
    return StratifiedKFold(count, shuffle=True, random_state=_SEED)


def _regression() -> LogisticRegression:
    return LogisticRegression(C=_STRENGTH, max_iter=1000)


if __name__ == "__main__":
    main()
