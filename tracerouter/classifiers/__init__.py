"""Say what a request is: rules that an owner wrote, examples that were learned from, a model that is asked.

Importing this loads neither numpy nor an embedding: :class:`ExamplesClassifier` does, when it is made
and used.
"""

from tracerouter.classifiers.chain import Chain
from tracerouter.classifiers.examples import EmbeddingsClassifier, ExamplesClassifier
from tracerouter.classifiers.llm import LlmClassifier
from tracerouter.classifiers.risks import RiskClassifier
from tracerouter.classifiers.rules import RulesClassifier

__all__ = ["Chain", "EmbeddingsClassifier", "ExamplesClassifier", "LlmClassifier", "RiskClassifier", "RulesClassifier"]
