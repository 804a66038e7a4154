"""The doors over HTTP: around an aiohttp application, as a gateway, and under an aiohttp client.

They are :func:`setup`, :func:`application` and :func:`client_middleware`.
"""

from tracerouter.web.client import client_middleware
from tracerouter.web.server import application
from tracerouter.web.wrap import ESCALATION, ROUTER, USAGE, Spent, middleware, setup

__all__ = ["ESCALATION", "ROUTER", "USAGE", "Spent", "application", "client_middleware", "middleware", "setup"]
