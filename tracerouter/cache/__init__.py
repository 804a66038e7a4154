"""Caches: answers by key, classifications by what was said."""

from tracerouter.cache.classification import CachedClassifier
from tracerouter.cache.keys import output_key, prompt_hash
from tracerouter.cache.memory import BoundedMemoryCache
from tracerouter.cache.output import OutputCache

__all__ = ["BoundedMemoryCache", "CachedClassifier", "OutputCache", "output_key", "prompt_hash"]
