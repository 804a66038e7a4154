"""The doors over HTTP: around an aiohttp application (:func:`setup`), and as a gateway (:func:`application`)."""

from tracerouter.web.server import application
from tracerouter.web.wrap import ESCALATION, ROUTER, USAGE, Spent, middleware, setup

__all__ = ["ESCALATION", "ROUTER", "USAGE", "Spent", "application", "middleware", "setup"]
