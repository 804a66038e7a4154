"""README's pictures, made: some minutes of traffic in which the cheap model stops writing JSON, and is then confined.

    python -m tests.e2e.drills.scene --minutes 12

Everything is real but the models and the users. The alerts' windows are shortened, so that they fire in time.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import traffic
from dashboards import pictures
from dashboards.alerts import Change
from dashboards.rules import rules
from tests.observability import DEMO, KEYS, Collector, Prometheus, Serve, Sink

PROSE = {"match": "(?i)^extract", "answer": "That seems to be an order for something."}
ABOUT = "synthetic traffic on simulated models; from the middle on the cheap one writes prose where JSON is asked for"


async def play(folder: Path, minutes: float) -> list[Path]:
    """Serve traffic for so long, and draw the boards of it."""
    shutil.copytree(DEMO.parent, folder / "gateway")
    (folder / "rules.yaml").write_text(rules(1 / 20))
    config, policy = folder / "gateway" / "tracerouter.yaml", folder / "gateway" / "policy.yaml"
    async with (
        Sink() as sink,
        Collector(folder, sink) as collector,
        Prometheus(folder, collector, folder / "rules.yaml", interval=1) as prometheus,
        Serve(folder, config, collector) as gateway,
    ):
        sending = asyncio.create_task(traffic.run(gateway.url, rate=30, keys=traffic.read_keys(KEYS), seed=5))
        for share, file, lines in (
            (0.45, config, {"models": {"small": {"answers": [PROSE]}}}),
            (0.30, policy, {"tasks": {"extract": {"start": "large"}}}),
        ):
            await asyncio.sleep(minutes * 60 * share)
            _change(file, lines)
            await gateway.stop()
            await gateway.start()
        await asyncio.sleep(minutes * 60 * 0.25)
        sending.cancel()
        return await pictures.draw(prometheus.url, ["route-mix", "fallback-storms"], minutes, pictures.FOLDER, ABOUT)


def _change(file: Path, lines: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(Change("", lines).applied(yaml.safe_load(file.read_text())), sort_keys=False))


def main() -> None:
    """Play it, and say what was drawn."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.drills.scene", description=__doc__)
    parser.add_argument("--minutes", type=float, default=12, help="default %(default)s")
    asked = parser.parse_args()
    pictures.FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tracerouter-scene-") as folder:
        made = asyncio.run(play(Path(folder), asked.minutes))
    sys.stdout.write("".join(f"{path}\n" for path in made))


if __name__ == "__main__":
    main()
