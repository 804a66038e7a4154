"""Models, and those who speak to them."""

from tracerouter.providers.anthropic import AnthropicProvider
from tracerouter.providers.handler import HandlerProvider
from tracerouter.providers.model import Model
from tracerouter.providers.openai import OpenAIProvider
from tracerouter.providers.prompt import compose
from tracerouter.providers.simulated import Simulated, SimulatedProvider

__all__ = [
    "AnthropicProvider",
    "HandlerProvider",
    "Model",
    "OpenAIProvider",
    "Simulated",
    "SimulatedProvider",
    "compose",
]
