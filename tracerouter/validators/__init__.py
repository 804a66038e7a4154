"""Whether an answer will do."""

from tracerouter.validators.arithmetic import Arithmetic
from tracerouter.validators.checks import BUILT_IN, Checks
from tracerouter.validators.citations import Citations
from tracerouter.validators.custom import Custom
from tracerouter.validators.form import Forbids, Length, Matches
from tracerouter.validators.judge import Validator, judge
from tracerouter.validators.language import Language
from tracerouter.validators.schema import JsonObject, JsonSchema, PydanticModel, ToolArguments
from tracerouter.validators.text import Empty, Refusal, Truncated

__all__ = [
    "BUILT_IN",
    "Arithmetic",
    "Checks",
    "Citations",
    "Custom",
    "Empty",
    "Forbids",
    "JsonObject",
    "JsonSchema",
    "Language",
    "Length",
    "Matches",
    "PydanticModel",
    "Refusal",
    "ToolArguments",
    "Truncated",
    "Validator",
    "judge",
]
