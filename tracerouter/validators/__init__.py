"""Whether an answer will do."""

from tracerouter.validators.checks import BUILT_IN, Checks
from tracerouter.validators.custom import Custom
from tracerouter.validators.judge import Validator, judge
from tracerouter.validators.schema import JsonObject, JsonSchema
from tracerouter.validators.text import Empty, Refusal, Truncated

__all__ = [
    "BUILT_IN",
    "Checks",
    "Custom",
    "Empty",
    "JsonObject",
    "JsonSchema",
    "Refusal",
    "Truncated",
    "Validator",
    "judge",
]
