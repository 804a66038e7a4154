"""``tracerouter serve``: the gateway."""

from __future__ import annotations

import ipaddress
import logging
import sys
from typing import TYPE_CHECKING

from aiohttp import web

from tracerouter.cli.files import add_config, deployment
from tracerouter.errors import ConfigError
from tracerouter.web import application

if TYPE_CHECKING:
    import argparse
    from typing import Any

_DRAIN_SECONDS = 30.0


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="the gateway: OpenAI's HTTP API in front of your models",
        description="Serves OpenAI's HTTP API. SIGTERM drains the requests under way and flushes spans.",
        epilog="Example: tracerouter serve --config tracerouter.yaml --port 8080",
    )
    add_config(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default %(default)s)")
    parser.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # the decision log tells more
    built = deployment(asked.config, _say)
    if built.keys is None:
        if not _is_loopback(asked.host):
            msg = (
                f"no API keys are configured, so the gateway listens on loopback only, not on {asked.host}; "
                "add `keys: {env: TRACEROUTER_KEYS}` to the file"
            )
            raise ConfigError(msg)
        sys.stderr.write("no API keys are configured: everybody on this machine is the tenant `default`\n")
    settings = built.settings
    app = application(built.router, keys=built.keys, max_body=settings.max_body, keep_alive=settings.keep_alive)
    sys.stderr.write(f"policy {built.router.policy.id} on http://{asked.host}:{asked.port}/v1\n")
    try:
        web.run_app(
            app,
            host=asked.host,
            port=asked.port,
            handler_cancellation=True,
            shutdown_timeout=_DRAIN_SECONDS,
            access_log=None,
            print=None,
        )
    except OSError as error:
        msg = f"can't listen on {asked.host}:{asked.port}: {error.strerror or error}"
        raise ConfigError(msg) from None
    return 0


def _say(said: str) -> None:
    sys.stderr.write(f"{said}\n")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
