"""The real observability stack on free ports of 127.0.0.1: collector, Prometheus, an OTLP sink, the gateway's process.

    async with Sink() as sink, Collector(folder, sink) as collector, Prometheus(folder, collector, rules) as prometheus:
        async with Serve(folder, config, collector) as gateway:
            ...
            await prometheus.until('sum(tracerouter_requests_total) == 3')

A server runs from its local binary if a variable names one, in a container if a Docker engine runs, else from the
binary that is found; without any of them the test is skipped with a sentence that says what to install. Configurations
are the committed ones with ports and intervals of a test's own. Everything ends with its ``async with``; what a server
wrote is in the message when it does not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import pytest
import yaml
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

ROOT = Path(__file__).parent.parent
COLLECTOR = ROOT / "collector"
DEMO = COLLECTOR / "gateway" / "tracerouter.yaml"
"""The gateway of compose.yaml."""
KEYS = DEMO.parent / "keys.json"
"""Its API keys: ``benchmarks.traffic.read_keys(KEYS)``."""

_PATIENCE = 30.0
"""Seconds in which what is waited for must come, on a machine that does other work too."""
_POLL = 0.05
_QUIET = 1.5
"""Seconds without an alert after which it is over."""


# --- servers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A server that a test starts: from a binary or from an image."""

    name: str
    path_variable: str
    image_variable: str
    image: str
    install: str

    def binary(self) -> Path | None:
        """Return the local binary: which the variable names, which was built, or the first on the path."""
        named = os.environ.get(self.path_variable)
        if named:
            return Path(named)
        built = built_collector() if self.name == "otelcol" else None
        found = str(built) if built else shutil.which(self.name)
        return Path(found) if found else None

    @property
    def in_container(self) -> bool:
        """Whether it runs in a container: an engine is there, and no variable says otherwise."""
        return not os.environ.get(self.path_variable) and engine()


OTELCOL = Program(
    name="otelcol",
    path_variable="TRACEROUTER_OTELCOL",
    image_variable="OTELCOL_IMAGE",
    image="otel/opentelemetry-collector-contrib:0.165.0",
    install="install Go and run .ci/collector",
)
PROMETHEUS = Program(
    name="prometheus",
    path_variable="TRACEROUTER_PROMETHEUS",
    image_variable="PROMETHEUS_IMAGE",
    image="prom/prometheus:v3.5.0",
    install="install Prometheus (Debian: apt-get install prometheus)",
)
PROMTOOL = Program(
    name="promtool",
    path_variable="TRACEROUTER_PROMTOOL",
    image_variable="PROMETHEUS_IMAGE",
    image=PROMETHEUS.image,
    install=PROMETHEUS.install,
)


def built_collector() -> Path | None:
    """Return the collector that ``.ci/collector`` has built from the manifest as it is now."""
    manifest = hashlib.sha256((COLLECTOR / "builder.yaml").read_bytes()).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = caches / "tracerouter" / "otelcol" / manifest / "otelcol"
    return path if path.exists() else None


@cache
def engine() -> bool:
    """Return whether a Docker engine answers."""
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False
    docker = importlib.import_module("docker")  # slow, and mostly there is none
    try:
        docker.from_env(timeout=2).ping()
    except docker.errors.DockerException:
        return False
    return True


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class _Process:
    """A process of ours; what it writes goes to a file."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: Iterable[str], log: Path, environment: Mapping[str, str]) -> Self:
        with log.open("ab") as into:
            return cls(
                await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=into,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, **environment},
                )
            )

    def running(self) -> bool:
        return self._process.returncode is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def wait(self) -> int:
        return await self._process.wait()

    def keep_log(self) -> None:
        """Its output is in the file already."""


class _Container:
    """A container of ours, on the host's network and with folders at their own paths: all is as for a process."""

    def __init__(self, container: Any, log: Path) -> None:
        self._container = container
        self._inner = container.get_wrapped_container()
        self._log = log

    @classmethod
    async def start(
        cls, image: str, arguments: Iterable[str], log: Path, folders: Iterable[Path], environment: Mapping[str, str]
    ) -> Self:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - as above

        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # each ends with its `async with`
        container = DockerContainer(image).with_command(list(arguments))
        container = container.with_kwargs(network_mode="host", user=f"{os.getuid()}:{os.getgid()}")
        for name, value in environment.items():
            container = container.with_env(name, value)
        for folder in folders:
            container = container.with_volume_mapping(str(folder), str(folder), "rw")
        return cls(await asyncio.to_thread(container.start), log)

    def running(self) -> bool:
        self._inner.reload()
        return str(self._inner.status) in {"created", "running", "paused"}

    def signal(self, number: int) -> None:
        self._inner.kill(signal.Signals(number).name)

    async def wait(self) -> int:
        ended = await asyncio.to_thread(self._inner.wait)
        self.keep_log()
        await asyncio.to_thread(self._container.stop)
        return int(ended["StatusCode"])

    def keep_log(self) -> None:
        self._log.write_bytes(self._inner.logs())


class _Server:
    """What is started, waited for, ended and started again, at the same address."""

    name: str
    health: str
    """The URL that answers 200 once it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=folder))
        self._log = self.folder / "output.log"
        self._running: _Process | _Container | None = None

    async def _launch(self) -> _Process | _Container:
        raise NotImplementedError

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self._running = await self._launch()
        try:
            async with asyncio.timeout(_PATIENCE), aiohttp.ClientSession() as session:
                while not await _answers(session, self.health):
                    if not self._running.running():
                        pytest.fail(f"{self.name} ended before it served: {self.log()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            pytest.fail(f"{self.name} did not serve within {_PATIENCE:.0f} s: {self.log()}")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its exit status."""
        running, self._running = self._running, None
        assert running, f"{self.name} does not run"
        running.signal(number)
        return await running.wait()

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        await self.stop(signal.SIGKILL)

    def log(self) -> str:
        """Return the end of what it wrote."""
        if self._running:
            self._running.keep_log()
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else "(it wrote nothing)"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running:
            await (self.kill() if self._running.running() else self._running.wait())

    async def _launched(
        self, program: Program, arguments: Iterable[str], folders: Iterable[Path], environment: Mapping[str, str]
    ) -> _Process | _Container:
        if program.in_container:
            image = os.environ.get(program.image_variable, program.image)
            return await _Container.start(image, arguments, self._log, folders, environment)
        return await _Process.start(
            [str(binary(program, ", or start a Docker engine")), *arguments], self._log, environment
        )


def binary(program: Program, otherwise: str = "") -> Path:
    """Return a program's local binary; without one the test is skipped."""
    found = program.binary()
    if found is None:
        pytest.skip(f"there is no {program.name}: {program.install}{otherwise}")
    return found


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
            return response.status == 200
    return False


async def until(look: Callable[[], Awaitable[Any]], what: str, patience: float = _PATIENCE) -> Any:
    """Look again and again until something is there, or true, and return it; `what` names it where it never is."""
    try:
        async with asyncio.timeout(patience):
            while not (found := await look()):
                await asyncio.sleep(_POLL)
            return found
    except TimeoutError:
        pytest.fail(f"no {what} in {patience:.0f} s")


# --- where traces and logs go ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A span as it arrived."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    attributes: dict[str, Any]
    failed: bool
    start: float
    """Unix seconds."""


@dataclass(frozen=True)
class Log:
    """A log record as it arrived."""

    trace_id: str
    event: str
    body: Any
    attributes: dict[str, Any]


@dataclass
class Sink:
    """Takes OTLP over HTTP where Tempo and Loki would, and can be told to fail, to hang, or to be away."""

    status: int = 200
    """With another status than 200 nothing is taken; 503 is one that is tried again."""
    spans: list[Span] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    refused: int = 0
    """Requests that were answered with another status."""

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._go_on = asyncio.Event()
        self._go_on.set()
        self._came = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def traces(self) -> dict[str, list[Span]]:
        """The spans by trace id (hex)."""
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.trace_id, []).append(span)
        return found

    async def until(self, holds: Callable[[Sink], bool], patience: float = _PATIENCE) -> None:
        """Wait until something holds of it."""
        try:
            async with asyncio.timeout(patience), self._came:
                await self._came.wait_for(lambda: holds(self))
        except TimeoutError:
            told = f"{len(self.traces)} traces, {len(self.spans)} spans, {len(self.logs)} logs, {self.refused} refused"
            pytest.fail(f"the sink did not get what was waited for in {patience:.0f} s; it has {told}")

    def hang(self) -> None:
        """Take requests and answer none, until ``go_on``."""
        self._go_on.clear()

    def go_on(self) -> None:
        """Answer again, also what hung."""
        self._go_on.set()

    async def start(self) -> None:
        """Listen, at the same address as before."""
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/traces", self._take_traces)
        app.router.add_post("/v1/logs", self._take_logs)
        app.router.add_post("/v1/metrics", self._take_metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        """Be away: connections are refused."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _take(self, request: web.Request) -> bytes | None:
        raw = await request.read()
        await self._go_on.wait()
        if self.status != 200:
            self.refused += 1
            return None
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw

    async def _answer(self) -> web.Response:
        async with self._came:
            self._came.notify_all()
        return web.Response(status=self.status, content_type="application/x-protobuf")

    async def _take_traces(self, request: web.Request) -> web.Response:
        raw = await self._take(request)
        for of_resource in ExportTraceServiceRequest.FromString(raw).resource_spans if raw is not None else ():
            service = _values(of_resource.resource.attributes).get("service.name", "")
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    failed = span.status.code == Status.STATUS_CODE_ERROR
                    start = span.start_time_unix_nano / 1e9
                    self.spans.append(Span(*ids, span.name, service, _values(span.attributes), failed, start))
        return await self._answer()

    async def _take_logs(self, request: web.Request) -> web.Response:
        raw = await self._take(request)
        for of_resource in ExportLogsServiceRequest.FromString(raw).resource_logs if raw is not None else ():
            for of_scope in of_resource.scope_logs:
                for one in of_scope.log_records:
                    attributes = _values(one.attributes)
                    self.logs.append(Log(one.trace_id.hex(), one.event_name, _value(one.body), attributes))
        return await self._answer()

    async def _take_metrics(self, request: web.Request) -> web.Response:
        """Take what a gateway without a collector sends too; metrics are for Prometheus to look at."""
        await self._take(request)
        return await self._answer()


def _values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(found: Any) -> Any:
    kind = found.WhichOneof("value")
    if kind == "kvlist_value":
        return _values(found.kvlist_value.values)
    if kind == "array_value":
        return [_value(one) for one in found.array_value.values]
    return getattr(found, kind) if kind else None


# --- collector -------------------------------------------------------------------------------------------------------


class Collector(_Server):
    """The collector on the committed ``collector.yaml``, with ports, patience and addresses of a test's own.

    Args:
        folder: Where its files go.
        sink: Takes its traces and logs.
        share: ``TRACEROUTER_SHARE``, in percent.
        more: Merged over the configuration, such as ``{"exporters": {"otlp_http/traces": {…}}}``.
    """

    name = "otelcol"

    def __init__(self, folder: Path, sink: Sink, *, share: float = 5, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder)
        http, grpc, metrics, own, health = (free_port() for _ in range(5))
        self.otlp = f"http://127.0.0.1:{http}"
        """Where routers send to."""
        self.health = f"http://127.0.0.1:{health}/"
        self.metrics = f"127.0.0.1:{metrics}"
        """Scraped as job `tracerouter`."""
        self.own_metrics = f"127.0.0.1:{own}"
        """Scraped as job `otelcol`."""
        soon = {
            "sending_queue": {"batch": {"flush_timeout": "50ms"}},
            "retry_on_failure": {"initial_interval": "100ms", "max_interval": "500ms"},
        }
        ports = {"http": {"endpoint": f"127.0.0.1:{http}"}, "grpc": {"endpoint": f"127.0.0.1:{grpc}"}}
        reader = {"pull": {"exporter": {"prometheus": {**_reader(), "host": "127.0.0.1", "port": own}}}}
        changed = {
            "receivers": {"otlp": {"protocols": ports}},
            # a trace is decided upon at the next tick, of which there is one a second
            "processors": {"tail_sampling": {"decision_wait": "3s", "decision_wait_after_root_received": "10ms"}},
            "exporters": {
                "otlp_http/traces": soon,
                "otlp_http/logs": soon,
                "prometheus": {"endpoint": self.metrics},
            },
            "extensions": {"health_check": {"endpoint": f"127.0.0.1:{health}"}},
            "service": {"telemetry": {"metrics": {"readers": [reader]}}},
        }
        (self.folder / "test.yaml").write_text(yaml.safe_dump(changed))
        (self.folder / "more.yaml").write_text(yaml.safe_dump(dict(more or {})))
        self._environment = {
            "TRACEROUTER_TRACES": sink.url,
            "TRACEROUTER_LOGS": sink.url,
            "TRACEROUTER_SHARE": str(share),
        }

    async def own(self, metric: str, **labels: str) -> float:
        """Return the sum of one of its own metrics, over the series that have these labels."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.own_metrics}/metrics") as response:
            lines = (await response.text()).splitlines()
        series = [line for line in lines if line.startswith((f"{metric} ", f"{metric}{{"))]
        asked = [f'{name}="{value}"' for name, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in series if all(one in line for one in asked))

    async def _launch(self) -> _Process | _Container:
        files = COLLECTOR / "collector.yaml", self.folder / "test.yaml", self.folder / "more.yaml"
        arguments = [f"--config={file}" for file in files]
        return await self._launched(OTELCOL, arguments, [COLLECTOR, self.folder], self._environment)


def _reader() -> dict[str, Any]:
    """Return what the committed file says of the collector's own metrics: lists are replaced, not merged."""
    service = yaml.safe_load((COLLECTOR / "collector.yaml").read_text())["service"]
    told: dict[str, Any] = service["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
    return told


# --- Prometheus ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One series of an answer, at one time."""

    labels: dict[str, str]
    value: float


class Prometheus(_Server):
    """Prometheus on the committed ``prometheus.yaml``, with targets and intervals of a test's own.

    Args:
        folder: Where its files go.
        collector: What it scrapes.
        rules: A rule file, or None for none.
        interval: Seconds between two scrapes, and between two evaluations of the rules.
    """

    name = "prometheus"

    def __init__(self, folder: Path, collector: Collector, rules: Path | None = None, interval: float = 0.2) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.health = f"{self.url}/-/ready"
        config = yaml.safe_load((COLLECTOR / "prometheus" / "prometheus.yaml").read_text())
        every = f"{round(interval * 1000)}ms"
        config["global"] |= {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
        config["rule_files"] = [] if rules is None else [str(rules)]
        targets = {"tracerouter": collector.metrics, "otelcol": collector.own_metrics}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        self._config = self.folder / "prometheus.yaml"
        self._config.write_text(yaml.safe_dump(config))
        self._folders = [self.folder, *([rules.parent] if rules else [])]
        self._session: aiohttp.ClientSession | None = None

    async def _launch(self) -> _Process | _Container:
        arguments = [
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
            "--scrape.discovery-reload-interval=100ms",  # targets are found 5 s after the start, and not 10
            "--log.level=warn",
        ]
        return await self._launched(PROMETHEUS, arguments, self._folders, {})

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()
            self._session = None
        await super().__aexit__()

    async def get(self, path: str, **parameters: str) -> Any:
        """Ask its API, and return the answer's data; a query that it can't read is the test's failure."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        async with self._session.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            told = await response.json()
        assert told["status"] == "success", f"{parameters}: {told.get('error')}"
        return told["data"]

    async def query(self, expression: str) -> list[Sample]:
        """Evaluate an expression now."""
        data = await self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]

    async def value(self, expression: str) -> float | None:
        """Evaluate an expression that has one value, or none, now."""
        found = await self.query(expression)
        assert len(found) <= 1, f"{expression} has {len(found)} values"
        return found[0].value if found else None

    async def exemplars(self, expression: str, start: float = 0) -> list[dict[str, Any]]:
        """Return the exemplars of an expression's series: `labels`, `value`, `timestamp` and `seriesLabels`."""
        end = str(time.time() + 60)
        found = await self.get("query_exemplars", query=expression, start=str(start), end=end)
        return [{**one, "seriesLabels": each["seriesLabels"]} for each in found for one in each["exemplars"]]

    async def alerts(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing, each with `labels`, `annotations` and `state`."""
        found = (await self.get("alerts"))["alerts"]
        return [one for one in found if name in {None, one["labels"]["alertname"]}]

    async def until(self, expression: str, patience: float = _PATIENCE) -> list[Sample]:
        """Wait until an expression has a value, which a comparison has once it holds, and return it."""
        found: list[Sample] = await until(lambda: self.query(expression), expression, patience)
        return found

    async def firing(self, alert: str, patience: float = _PATIENCE) -> list[dict[str, Any]]:
        """Wait until an alert fires, and return all of its name that do."""

        async def fires() -> list[dict[str, Any]]:
            return [one for one in await self.alerts(alert) if one["state"] == "firing"]

        found: list[dict[str, Any]] = await until(fires, f"alert {alert} that fires", patience)
        return found

    async def resolved(self, alert: str, patience: float = _PATIENCE) -> None:
        """Wait until an alert neither fires nor is pending, and stays so: a gap in the data ends it for a moment."""
        quiet_since: float | None = None

        async def ended() -> bool:
            nonlocal quiet_since
            if await self.alerts(alert):
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            return quiet_since is not None and time.monotonic() - quiet_since > _QUIET

        await until(ended, f"end of the alert {alert}", patience)


# --- gateway ---------------------------------------------------------------------------------------------------------


class Serve(_Server):
    """``tracerouter serve`` in a process of its own.

    Args:
        folder: Where its log and, unless the file says otherwise, its store go.
        config: Its ``tracerouter.yaml``; :data:`DEMO` is one.
        collector: Its telemetry goes there, if the file leaves that to ``TRACEROUTER_OTLP``.
        environment: Besides.
    """

    name = "gateway"

    def __init__(self, folder: Path, config: Path, collector: Collector | None = None, **environment: str) -> None:
        super().__init__(folder)
        self._config = config
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.health = f"{self.url}/readyz"
        self._environment = {
            "TRACEROUTER_OTLP": collector.otlp if collector else "http://127.0.0.1:9",
            "TRACEROUTER_STORE": str(self.folder / "tracerouter.db"),
            "TRACEROUTER_METRIC_INTERVAL": "200ms",
            **environment,
        }

    async def _launch(self) -> _Process | _Container:
        command = [
            sys.executable,
            "-m",
            "tracerouter",
            "serve",
            "--config",
            str(self._config),
            "--port",
            str(self.port),
        ]
        return await _Process.start(command, self._log, self._environment)
