"""Spans, metrics, log records and decision rows, all projected from one Record. The only importer of OpenTelemetry."""

from tracerouter.telemetry import names
from tracerouter.telemetry.export import Telemetry, over_otlp, to_console
from tracerouter.telemetry.keep import Keep
from tracerouter.telemetry.record import Draft, Record
from tracerouter.telemetry.timeline import Note, Timeline, current_traceparent, fresh_id

__all__ = [
    "Draft",
    "Keep",
    "Note",
    "Record",
    "Telemetry",
    "Timeline",
    "current_traceparent",
    "fresh_id",
    "names",
    "over_otlp",
    "to_console",
]
