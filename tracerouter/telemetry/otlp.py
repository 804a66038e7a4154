"""OTLP over HTTP, encoded by hand: a fifth of the CPU that protobuf's Python messages take for the same bytes.

Encoding is the largest single cost of exporting everything. Sockets, retries, compression and time-outs stay those of
OpenTelemetry's own exporters, which are subclassed here; a test decodes what is made and compares it with theirs.

Field numbers are those of opentelemetry-proto (``trace.proto``, ``logs.proto``, ``common.proto``); the wire format is
protobuf's: a tag is ``field << 3 | type``, with type 0 a varint, 1 eight bytes, 2 a length and bytes, 5 four bytes.
"""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import SpanContext

_fixed32: Final = Struct("<I").pack
_fixed64: Final = Struct("<Q").pack
_double: Final = Struct("<d").pack
_ONE_BYTE: Final = tuple(bytes([number]) for number in range(128))
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200


class SpanExporter(OTLPSpanExporter):
    """Sends spans that share one resource and one scope."""

    _shell: tuple[bytes, bytes] | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Encode and send; a batch that can't be sent is lost, and logged by the SDK."""
        if self._shell is None:
            (told,) = encode_spans(spans[:1]).resource_spans
            self._shell = _shell(told.resource, told.scope_spans[0].scope)
        sent = self._client.export(_request(self._shell, map(span, spans)))
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


class LogExporter(OTLPLogExporter):
    """Sends log records that share one resource and one scope."""

    _shell: tuple[bytes, bytes] | None = None

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Encode and send; a batch that can't be sent is lost, and logged by the SDK."""
        if self._shell is None:
            (told,) = encode_logs(batch[:1]).resource_logs
            self._shell = _shell(told.resource, told.scope_logs[0].scope)
        sent = self._client.export(_request(self._shell, map(log_record, batch)))
        return LogRecordExportResult.SUCCESS if sent.success else LogRecordExportResult.FAILURE


def span(told: ReadableSpan) -> bytes:
    """Encode a ``Span``."""
    context, parent = told.context, told.parent
    state = context.trace_state
    flags = _HAS_IS_REMOTE | (_IS_REMOTE if parent is not None and parent.is_remote else 0)
    parts = [
        b"\x0a\x10",
        context.trace_id.to_bytes(16, "big"),
        b"\x12\x08",
        context.span_id.to_bytes(8, "big"),
        _text(0x1A, ",".join(f"{key}={value}" for key, value in state.items())) if state else b"",
        b"\x22\x08" + parent.span_id.to_bytes(8, "big") if parent is not None else b"",
        _text(0x2A, told.name),
        b"\x30",
        _ONE_BYTE[told.kind.value + 1],
        b"\x39",
        _fixed64(told.start_time or 0),
        b"\x41",
        _fixed64(told.end_time or 0),
        *[_pair(b"\x4a", name, value) for name, value in (told.attributes or {}).items()],
        *[_block(b"\x5a", _event(event)) for event in told.events],
        *[_block(b"\x6a", _link(link.context)) for link in told.links],
        _block(b"\x7a", _status(told)),
        b"\x85\x01",
        _fixed32(flags),
    ]
    return b"".join(parts)


def log_record(told: ReadableLogRecord) -> bytes:
    """Encode a ``LogRecord``."""
    record = told.log_record
    parts = [
        b"\x09",
        _fixed64(record.timestamp or 0),
        b"\x10",
        _varint(record.severity_number.value if record.severity_number else 0),
        _text(0x1A, record.severity_text or ""),
        _block(b"\x2a", _value(record.body)),
        *[_pair(b"\x32", name, value) for name, value in (record.attributes or {}).items()],
        b"\x45",
        _fixed32(int(record.trace_flags or 0)),
        b"\x4a\x10",
        (record.trace_id or 0).to_bytes(16, "big"),
        b"\x52\x08",
        (record.span_id or 0).to_bytes(8, "big"),
        b"\x59",
        _fixed64(record.observed_timestamp or 0),
        _text(0x62, record.event_name or ""),
    ]
    return b"".join(parts)


def _request(shell: tuple[bytes, bytes], items: Iterable[bytes]) -> bytes:
    """Put items of field 2 into a scope's message, that into a resource's, and that into a request."""
    resource, scope = shell
    scoped = b"".join([scope, *[_block(b"\x12", item) for item in items]])
    return _block(b"\x0a", resource + _block(b"\x12", scoped))


def _shell(resource: Any, scope: Any) -> tuple[bytes, bytes]:
    return _block(b"\x0a", resource.SerializeToString()), _block(b"\x0a", scope.SerializeToString())


def _event(event: Event) -> bytes:
    attributes = [_pair(b"\x1a", name, value) for name, value in (event.attributes or {}).items()]
    return b"".join([b"\x09", _fixed64(event.timestamp), _text(0x12, event.name), *attributes])


def _link(context: SpanContext) -> bytes:
    flags = _HAS_IS_REMOTE | (_IS_REMOTE if context.is_remote else 0)
    ids = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
    return b"".join([*ids, b"\x35", _fixed32(flags)])


def _status(told: ReadableSpan) -> bytes:
    code = told.status.status_code.value
    return _text(0x12, told.status.description or "") + (b"\x18" + _ONE_BYTE[code] if code else b"")


def _pair(tag: bytes, name: str, value: object) -> bytes:
    encoded = _value(value)
    return _block(tag, _key(name) + _length(encoded) + encoded)


@cache
def _key(name: str) -> bytes:
    """Encode a ``KeyValue``'s key, up to the tag of its value; attribute names are few."""
    return _text(0x0A, name) + b"\x12"


def _value(value: object) -> bytes:
    """Encode an ``AnyValue``."""
    encode = _BY_TYPE.get(type(value))
    if encode is None:
        encode = next((_BY_TYPE[kind] for kind in _BY_TYPE if isinstance(value, kind)), None)
    return b"" if encode is None else encode(value)


def _string(value: str) -> bytes:
    raw = value.encode("utf-8", "replace")
    return b"\x0a" + _length(raw) + raw


def _array(value: Sequence[object]) -> bytes:
    return _block(b"\x2a", b"".join(_block(b"\x0a", _value(item)) for item in value))


def _map(value: Mapping[str, object]) -> bytes:
    return _block(b"\x32", b"".join(_pair(b"\x0a", name, item) for name, item in value.items()))


_BY_TYPE: Final[dict[type, Callable[[Any], bytes]]] = {
    bool: lambda value: b"\x10\x01" if value else b"\x10\x00",
    str: _string,
    int: lambda value: b"\x18" + _varint(value),
    float: lambda value: b"\x21" + _double(value),
    tuple: _array,
    list: _array,
    dict: _map,
}


def _text(tag: int, text: str) -> bytes:
    if not text:
        return b""
    raw = text.encode("utf-8", "replace")
    return _ONE_BYTE[tag] + _length(raw) + raw


def _block(tag: bytes, content: bytes) -> bytes:
    return tag + _length(content) + content


def _length(content: bytes) -> bytes:
    size = len(content)
    return _ONE_BYTE[size] if size < 128 else _varint(size)  # noqa: PLR2004 - what fits into one byte of a varint


def _varint(number: int) -> bytes:
    """Encode a varint: seven bits a byte, the lowest first; a negative number as 64 bits of two's complement."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
