"""Policy: data that says where a request goes, and the pure function that reads it."""

from tracerouter.policy.decide import decide
from tracerouter.policy.model import Policy, PolicyFile, load

__all__ = ["Policy", "PolicyFile", "decide", "load"]
