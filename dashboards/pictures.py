"""README's pictures: a board's panels, drawn by matplotlib from what a real Prometheus answers to their queries.

    python -m dashboards.pictures --prometheus http://127.0.0.1:9090 --minutes 15 route-mix fallback-storms

They show the data, the titles and the layout of the board, not Grafana's looks; each picture says so.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import matplotlib as mpl
from matplotlib import dates
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dashboards import dashboards, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from matplotlib.axes import Axes

FOLDER: Final = Path("dashboards/pictures")

_STEPS: Final = 180
"""Points in time."""
_COLUMNS: Final = 24
"""Grafana's grid."""
_INCHES: Final = (0.62, 0.36)
"""Of a cell of that grid."""
_DRAWN: Final = ("timeseries", "stat", "bargauge", "table")
_COLOURS: Final[Mapping[str, str]] = {
    "cached": "#5794f2",
    "cheap": "#73bf69",
    "fallback": "#ff9830",
    "expensive": "#b877d9",
    "refused": "#8e8e8e",
    "failed": "#f2495c",
}
_OTHERS: Final = ("#5794f2", "#ff9830", "#73bf69", "#b877d9", "#f2495c", "#fade2a", "#8ab8ff", "#96d98d", "#8e8e8e")
_MANY: Final = 100
"""From here on digits after the point say nothing."""
_BACK: Final = "#f7f8fa"
_INK: Final = "#24292e"


class Series(NamedTuple):
    """What one line shows."""

    legend: str
    times: list[datetime]
    values: list[float]


class Prometheus:
    """Asks over a time (Unix seconds)."""

    def __init__(self, session: aiohttp.ClientSession, url: str, start: float, end: float) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/api/v1/query_range"
        self.start, self.end = start, end

    async def series(self, target: Mapping[str, Any]) -> list[Series]:
        """Return what a panel's query answers."""
        seconds = self.end - self.start
        asked = {
            "query": resolve(target["expr"], interval=f"{max(seconds / 30, 4):.0f}s", period=f"{seconds:.0f}s"),
            "start": f"{self.start}",
            "end": f"{self.end}",
            "step": f"{seconds / _STEPS}",
        }
        if target.get("instant"):
            asked |= {"start": asked["end"], "step": "1"}
        async with self._session.get(self._url, params=asked) as response:
            told = await response.json()
        if told["status"] != "success":
            sys.exit(f"{asked['query']}: {told.get('error')}")
        return [_series(one, target.get("legendFormat") or "") for one in told["data"]["result"]]


async def draw(url: str, boards: Iterable[str], minutes: float, folder: Path, about: str) -> list[Path]:
    """Draw boards from the last `minutes`, and return the files.

    Args:
        url: Prometheus's.
        boards: Their uids.
        minutes: Until now.
        folder: Where the pictures go, one a board, named by its uid.
        about: What traffic it is, for the line under the picture.
    """
    known, written, end = dashboards(), [], time.time()
    async with aiohttp.ClientSession() as session:
        prometheus = Prometheus(session, url, end - minutes * 60, end)
        for uid in boards:
            if uid not in known:
                sys.exit(f"there is no board {uid!r}; known are {', '.join(known)}")
            path = folder / f"{uid}.png"
            (await _board(known[uid], prometheus, about)).savefig(path, dpi=110, facecolor="white")
            written.append(path)
    return written


async def _board(board: Mapping[str, Any], prometheus: Prometheus, about: str) -> Figure:
    mpl.rcParams.update({"font.size": 7.5, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": "#c8ccd2"})
    panels = [panel for panel in board["panels"] if panel["type"] in _DRAWN]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    head, foot = 0.5, 0.35
    inches = height * _INCHES[1] + head + foot
    figure = Figure(figsize=(_COLUMNS * _INCHES[0], inches))
    figure.text(0.01, 1 - 0.3 / inches, board["title"], fontsize=13, weight="bold")
    span = f"{datetime.fromtimestamp(prometheus.start, UTC):%Y-%m-%d %H:%M} to {_clock(prometheus.end)} UTC"
    figure.text(
        0.01, 0.12 / inches, f"{about}  ·  {span}  ·  drawn by dashboards/pictures.py from Prometheus", alpha=0.6
    )
    for row in (panel for panel in board["panels"] if panel["type"] == "row"):
        figure.text(0.012, 1 - (head + (row["gridPos"]["y"] + 0.7) * _INCHES[1]) / inches, row["title"], fontsize=9)
    for panel in panels:
        place = panel["gridPos"]
        x, width = (place["x"] + 0.2) / _COLUMNS, (place["w"] - 0.4) / _COLUMNS
        top, tall = head + (place["y"] + 0.1) * _INCHES[1], (place["h"] - 0.2) * _INCHES[1]
        box = figure.add_axes((x, 1 - (top + tall) / inches, width, tall / inches), facecolor=_BACK)
        box.set(xticks=[], yticks=[])
        box.set_title(f" {panel['title']}", loc="left", y=1, pad=-10, fontsize=8, weight="bold")
        inner = (x + 0.035, 1 - (top + tall - 0.26) / inches, width - 0.045, (tall - 0.55) / inches)
        asked = [(target, await prometheus.series(target)) for target in panel["targets"]]
        _PANELS[panel["type"]](figure.add_axes(inner, facecolor=_BACK), panel, asked)
    return figure


Asked = list[tuple["Mapping[str, Any]", list[Series]]]


def _timeseries(axes: Axes, panel: Mapping[str, Any], asked: Asked) -> None:
    found = [one for _, answers in asked for one in answers]
    custom = panel["fieldConfig"]["defaults"].get("custom") or {}
    if (custom.get("stacking") or {}).get("mode") == "normal" and found:
        times = sorted({at for one in found for at in one.times})
        heights = [[dict(zip(one.times, one.values, strict=True)).get(at, 0.0) for at in times] for one in found]
        colours = [_colour(one.legend, number) for number, one in enumerate(found)]
        axes.stackplot(times, heights, labels=[one.legend for one in found], colors=colours, alpha=0.75)  # type: ignore[arg-type]
    else:
        for number, one in enumerate(found):
            axes.plot(one.times, one.values, label=one.legend, color=_colour(one.legend, number), linewidth=1.1)  # type: ignore[arg-type]
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M", tz=UTC))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=6))  # type: ignore[no-untyped-call]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _formatted(value, panel)))
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#e2e5e9", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2, labelsize=6.5)
    if found:
        axes.legend(fontsize=5.8, ncols=2, loc="upper left", framealpha=0.65, borderpad=0.3, handlelength=1)
    else:
        _nothing(axes)


def _stat(axes: Axes, panel: Mapping[str, Any], asked: Asked) -> None:
    axes.set_axis_off()
    values = [one.values[-1] for _, answers in asked for one in answers]
    if not values:
        return _nothing(axes)
    steps = (panel["fieldConfig"]["defaults"].get("thresholds") or {}).get("steps") or []
    colour = [step["color"] for step in steps if step["value"] is None or values[0] >= step["value"]][-1:]
    shown = {"green": "#3f9a38", "red": "#d23b50", "dark-orange": "#e07000"}.get("".join(colour), _INK)
    axes.text(0.5, 0.5, _formatted(values[0], panel), ha="center", va="center", fontsize=17, weight="bold", color=shown)
    return None


def _bars(axes: Axes, panel: Mapping[str, Any], asked: Asked) -> None:
    found = sorted((one for _, answers in asked for one in answers), key=lambda one: one.values[-1])[-12:]
    if not found:
        return _nothing(axes)
    numbers = range(len(found))
    colours = [_colour(one.legend, number) for number, one in enumerate(found)]
    axes.barh(list(numbers), [one.values[-1] for one in found], color=colours, height=0.6)
    axes.set_ylim(len(found) - 0.4 - max(len(found), 6), len(found) - 0.4)
    share = panel["fieldConfig"]["defaults"].get("unit") == "percentunit"
    longest = 1.0 if share else max(one.values[-1] for one in found) or 1.0
    axes.set_xlim(0, longest)
    for number, one in zip(numbers, found, strict=True):
        told = f"{one.legend}  {_formatted(one.values[-1], panel)}"
        axes.text(longest * 0.01, number, told, va="center", fontsize=6.5)
    axes.set_axis_off()
    return None


def _table(axes: Axes, panel: Mapping[str, Any], asked: Asked) -> None:
    axes.set_axis_off()
    units = {
        each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}.get("unit")
        for each in panel["fieldConfig"]["overrides"]
    }
    columns = list(units)
    rows: dict[str, dict[str, str]] = {}
    for (_, answers), column in zip(asked, columns, strict=False):
        for one in sorted(answers, key=lambda one: -one.values[-1]):
            rows.setdefault(one.legend, {})[column] = _formatted(one.values[-1], panel, units[column])
    if not rows:
        return _nothing(axes)
    shown = [[legend, *(cells.get(column, "") for column in columns)] for legend, cells in list(rows.items())[:8]]
    drawn = axes.table(cellText=shown, colLabels=["", *columns], loc="upper center", cellLoc="left", edges="horizontal")
    drawn.auto_set_font_size(False)  # noqa: FBT003 - matplotlib's
    drawn.set_fontsize(6.5)
    return None


_PANELS: Final[dict[str, Callable[[Axes, Mapping[str, Any], Asked], None]]] = {
    "timeseries": _timeseries,
    "stat": _stat,
    "bargauge": _bars,
    "table": _table,
}


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing in this time", ha="center", va="center", transform=axes.transAxes, alpha=0.5)


def _colour(legend: str, number: int) -> str:
    return next((colour for word, colour in _COLOURS.items() if legend == word), _OTHERS[number % len(_OTHERS)])


def _series(found: Mapping[str, Any], legend: str) -> Series:
    labels = {name: value for name, value in found["metric"].items() if name != "__name__"}
    told = (
        re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda name: labels.get(name[1], ""), legend)
        if legend
        else ", ".join(labels.values())
    )
    kept = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in found["values"] if value != "NaN"]
    return Series(told.strip() or "(none)", [at for at, _ in kept], [value for _, value in kept] or [float("nan")])


def _formatted(value: float, panel: Mapping[str, Any], unit: str | None = None) -> str:
    unit = unit or panel["fieldConfig"]["defaults"].get("unit")
    if (unit == "short" and float(value).is_integer()) or abs(value) >= _MANY:
        return f"{value:,.0f}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "currencyUSD":
        return f"${value:.2f}" if abs(value) >= 1 else f"${value:.3g}"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    return f"{value:.3g}" + {"reqps": " req/s", "ops": "/s"}.get(str(unit), "")


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M}"


def main() -> None:
    """Draw the boards that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m dashboards.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("boards", nargs="+", metavar="UID", help="such as route-mix")
    parser.add_argument("--prometheus", required=True, metavar="URL", help="one that has scraped the traffic")
    parser.add_argument("--minutes", type=float, default=15, help="until now (default %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="default %(default)s")
    parser.add_argument(
        "--about", default="synthetic traffic", help="what traffic it is, for the line under the picture"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    made = asyncio.run(draw(asked.prometheus, asked.boards, asked.minutes, asked.out, asked.about))
    sys.stdout.write("".join(f"{path}\n" for path in made))


if __name__ == "__main__":
    main()
