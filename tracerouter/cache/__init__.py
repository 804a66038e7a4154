"""Caches: answers by key, classifications by what was said; equal requests that wait for one another."""

from tracerouter.cache.classification import CachedClassifier
from tracerouter.cache.flight import Flights
from tracerouter.cache.keys import output_key, prompt_hash
from tracerouter.cache.memory import BoundedMemoryCache
from tracerouter.cache.output import OutputCache

__all__ = ["BoundedMemoryCache", "CachedClassifier", "Flights", "OutputCache", "output_key", "prompt_hash"]
