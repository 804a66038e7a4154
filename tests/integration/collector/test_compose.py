"""``compose.yaml``, as far as it can be looked at without an engine: what it names is there, and fits together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability import COLLECTOR, OTELCOL, PROMETHEUS, ROOT, Program
from tests.redis_server import REDIS
from tracerouter import config

COMPOSE: dict[str, Any] = yaml.safe_load((COLLECTOR / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
GRAFANA = COLLECTOR / "grafana" / "provisioning"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_all_that_it_mounts_and_builds_is_committed() -> None:
    """Every file and folder that a service is given is in the checkout, read-only, and so is every Dockerfile."""
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, _, mode = volume.split(":")
            assert (COLLECTOR / source).exists(), f"{name}: {source}"
            assert mode == "ro", f"{name}: {volume}"
        if "build" in service:
            context = COLLECTOR / service["build"]["context"]
            dockerfile = (context / service["build"]["dockerfile"]).read_text()
            for copied in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
                assert all((context / path).exists() for path in copied.split()), f"{name}: {copied}"


def test_every_image_can_be_another() -> None:
    """Each image comes from a variable, whose default is pinned to a version."""
    for name, service in SERVICES.items():
        variable = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-([^}]+)\}", service["image"])
        assert variable, f"{name}: {service['image']}"
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+", variable[1]), f"{name}: {variable[1]} is not pinned"


@pytest.mark.parametrize("program", [OTELCOL, PROMETHEUS, REDIS], ids=lambda program: program.name)
def test_tests_run_the_same_images(program: Program) -> None:
    """A test that runs a server in a container takes the image that compose takes."""
    written = f"${{{program.image_variable}:-{program.image}}}"
    assert written in {service["image"] for service in SERVICES.values()}


def test_every_server_is_waited_for() -> None:
    """Each service says whether it is well, or is polled until it answers; but for what nobody calls."""
    polled = {re.search(r"//(\w+)", url)[1] for url in SERVICES["ready"]["command"] if url.startswith("http")}  # type: ignore[index]
    well = {name for name, service in SERVICES.items() if "healthcheck" in service}
    assert well | polled == set(SERVICES) - {"ready", "traffic"}
    for name, service in SERVICES.items():
        waits = service.get("depends_on", {})
        for needed in waits if isinstance(waits, dict) else ():
            if waits[needed]["condition"] == "service_healthy":
                assert needed in well, f"{name} waits for the health of {needed}, which never tells it"


def test_nothing_listens_beyond_the_machine() -> None:
    """The keys are for everybody to read and Grafana has no password, so each port is one of 127.0.0.1."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_address_is_that_of_a_service() -> None:
    """What one service is told of another is a service's name and a port on which that one listens."""
    listens = {
        "gateway:8080", "collector:4318", "collector:8888", "collector:8889", "collector:13133",
        "prometheus:9090", "tempo:3200", "tempo:4318", "loki:3100",
    }  # fmt: skip
    files = [COLLECTOR / name for name in ("compose.yaml", "collector.yaml", "prometheus/prometheus.yaml")]
    names = "|".join(SERVICES)
    found = set()
    for file in [*files, *GRAFANA.rglob("*.yaml")]:
        found |= set(re.findall(rf"(?<=[/\"])(?:{names}):\d+(?![\d.])", file.read_text()))
    assert found == listens
    for port in {address.partition(":")[2] for address in listens if address.startswith("collector:")}:
        assert port in (COLLECTOR / "collector.yaml").read_text()
    assert _yaml(COLLECTOR / "tempo.yaml")["server"]["http_listen_port"] == 3200
    assert (
        ":4318" in _yaml(COLLECTOR / "tempo.yaml")["distributor"]["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    )
    assert _yaml(COLLECTOR / "loki.yaml")["server"]["http_listen_port"] == 3100


def test_grafana_leads_from_an_exemplar_to_its_trace_and_logs_and_back() -> None:
    """Prometheus' exemplars lead to Tempo, its traces to Loki, and Loki's records to Tempo; and each uid is there."""
    (file,) = (GRAFANA / "datasources").glob("*.yaml")
    sources = {source["type"]: source for source in _yaml(file)["datasources"]}
    uids = {kind: source["uid"] for kind, source in sources.items()}
    (exemplar,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplar["name"], exemplar["datasourceUid"]) == ("trace_id", uids["tempo"])
    assert sources["tempo"]["jsonData"]["tracesToLogsV2"]["datasourceUid"] == uids["loki"]
    (field,) = sources["loki"]["jsonData"]["derivedFields"]
    assert (field["matcherRegex"], field["datasourceUid"]) == ("trace_id", uids["tempo"])
    interval = _yaml(COLLECTOR / "prometheus" / "prometheus.yaml")["global"]["scrape_interval"]
    assert sources["prometheus"]["jsonData"]["timeInterval"] == interval


def test_grafana_finds_the_dashboards() -> None:
    """The provider reads the folder that the generated dashboards are mounted on, and the first page is one of them."""
    grafana = SERVICES["grafana"]
    (file,) = (GRAFANA / "dashboards").glob("*.yaml")
    (provider,) = _yaml(file)["providers"]
    assert f"../dashboards/json:{provider['options']['path']}:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert json.loads((ROOT / "dashboards" / "json" / home.name).read_text())["uid"] == home.stem


def test_prometheus_keeps_exemplars() -> None:
    """Without the flag an exemplar is thrown away, and without OpenMetrics it is not sent."""
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]
    assert _yaml(COLLECTOR / "collector.yaml")["exporters"]["prometheus"]["enable_open_metrics"] is True


async def test_the_gateway_starts_on_what_compose_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's two files and its keys are good, and compose sets every variable that they name."""
    for name, value in SERVICES["gateway"]["environment"].items():
        monkeypatch.setenv(name, value.replace("/home/tracerouter", str(tmp_path)))
    built = config.load(COLLECTOR / "gateway" / "tracerouter.yaml")
    assert built.keys
    assert len(built.keys) == 5
    await built.router.close()
