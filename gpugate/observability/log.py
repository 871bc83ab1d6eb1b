"""Log lines: JSON or console, redacted, written to a stream that may fail.

Lines of structlog and of the standard library's loggers (aiohttp's) end in one `logging` handler and are
rendered by structlog's `ProcessorFormatter`. The access log does not go that way: it has one line for each
request, so it builds the line itself and writes it to the same `Sink`, at about a tenth of the cost.

A full disk, a closed stderr or a blocked pipe loses lines, which are counted, and never fails a request.
Each line is one unbuffered write, so a crash loses none.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import IO, Any, Literal

import orjson
import structlog
from attrs import define, field
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from gpugate.observability.redact import Redactor, many_lines, one_line, redact_value, redactor, truncate

Format = Literal["auto", "console", "json"]

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_MULTI_LINE_FIELDS = frozenset({"exception", "stack"})
_CACHED_PATHS = 256
_MAX_PATH_LENGTH = 1024
_ORJSON_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE


class Sink:
    """Writes whole lines to a stream and never raises; `lost` counts the lines that were not written."""

    def __init__(self, stream: IO[Any] | None) -> None:
        self.lost = 0
        self._put = _raw_writer(stream)
        self._is_line_open = False

    def write(self, line: bytes) -> None:
        """Write one line, which ends with a newline."""
        if self._is_line_open:  # part of a line was written before the disk was full: do not continue it
            line = b"\n" + line
        length = len(line)
        try:
            while line and (taken := self._put(line)):
                line = line[taken:]
        except (OSError, ValueError, AttributeError):  # full, gone, closed
            pass
        if line:
            self.lost += 1
            self._is_line_open = len(line) < length or self._is_line_open
        else:
            self._is_line_open = False


def _raw_writer(stream: IO[Any] | None) -> Callable[[bytes], int | None]:
    """Return a function that writes past the stream's buffers and returns how many bytes, 0 or None: none."""
    if stream is None:
        return lambda line: 0
    if isinstance(stream, io.StringIO):
        text = stream
        return lambda line: text.write(line.decode()) and len(line)
    binary = getattr(stream, "buffer", stream)
    put: Callable[[bytes], int | None] = getattr(binary, "raw", binary).write
    return put


@define
class Output:
    """What `configure` has set up; `AccessLog` writes to it."""

    sink: Sink
    json: bool
    level: int
    redacted: Redactor = field(repr=False)


class _SinkHandler(logging.Handler):
    """Writes formatted records to the sink; a record that cannot be formatted is counted as lost."""

    def __init__(self, output: Output, formatter: logging.Formatter) -> None:
        super().__init__(output.level)
        self._sink = output.sink
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = self.format(record)
        except Exception:  # arguments that do not fit the text, a value that a renderer cannot show
            self._sink.lost += 1
        else:
            self._sink.write(line.encode("utf-8", "backslashreplace"))


def configure(
    style: Format = "auto",
    level: str = "info",
    stream: IO[Any] | None = None,
    *,
    secrets: Iterable[str] = (),
) -> Output:
    """Send the lines of structlog and of the standard library to `stream`; may be called again.

    Args:
        style: "json" is one object a line; "auto" is "console" on a terminal, else "json".
        level: the lowest level that is written.
        stream: binary or text; None: stderr.
        secrets: values that are replaced wherever they occur.

    Raises:
        ValueError: no such style or level.
    """
    if style not in ("auto", "console", "json") or level.lower() not in LEVELS:
        raise ValueError(f"no log style {style!r} or no log level {level!r}")
    stream = sys.stderr if stream is None else stream
    terminal = _is_terminal(stream)
    as_json = style == "json" or (style == "auto" and not terminal)
    output = Output(Sink(stream), as_json, LEVELS[level.lower()], redactor(secrets))
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # plain tracebacks: local variables would show tokens
    ]
    structlog.configure(
        processors=[*common, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(output.level),
        logger_factory=lambda *_: logging.getLogger("gpugate"),
        cache_logger_on_first_use=False,
    )
    formatter = ProcessorFormatter(
        foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
        processors=[
            _Redaction(output),
            _render_json if as_json else _console_renderer(terminal and not os.environ.get("NO_COLOR")),
        ],
        keep_exc_info=False,
        keep_stack_info=False,
    )
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _SinkHandler)]:
        root.removeHandler(handler)
    root.addHandler(_SinkHandler(output, formatter))
    root.setLevel(output.level)
    return output


class _Redaction:
    """A processor: puts time, level and event first, and redacts all fields."""

    def __init__(self, output: Output) -> None:
        self._redacted = output.redacted
        self._json = output.json

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event.pop("_record")
        event.pop("_from_structlog")
        line: dict[str, object] = {
            "time": datetime.now(UTC),
            "level": record.levelname.lower(),
            "event": redact_value("event", event.pop("event", ""), self._redacted),
        }
        for name, value in event.items():
            name = f"{name}_" if name in line else truncate(str(name))
            line[name] = redact_value(name, value, self._redacted)
        return line if self._json else _without_control_characters(line)


def _without_control_characters(line: dict[str, object]) -> dict[str, object]:
    shown: dict[str, object] = {}
    for name, value in line.items():
        plain = value if value is None or isinstance(value, bool | int | float) else str(value)
        if isinstance(plain, str):
            plain = many_lines(plain) if name in _MULTI_LINE_FIELDS else one_line(plain)
        shown[one_line(name)] = plain
    shown["time"] = _short_time(line["time"])
    return shown


def _console_renderer(colours: bool) -> Processor:
    render = structlog.dev.ConsoleRenderer(
        colors=colours,
        timestamp_key="time",
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return lambda logger, method, event: f"{render(logger, method, event)}\n"


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    return _json_line(event).decode()


def _json_line(line: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(line, option=_ORJSON_OPTIONS)
    except TypeError:  # text beyond UTF-8, from a client's raw bytes
        return orjson.dumps(
            {name: redact_value("", value, truncate) for name, value in line.items()}, option=_ORJSON_OPTIONS
        )


class AccessLog:
    """Writes one line for each request, when it has ended. It is on the hot path.

    Its fields:
        request_id: the client's, if it is well-formed, else a new one (`proxy.error_format.request_id`).
        path: as the client sent it, without its query and redacted.
        status: that was sent; 499 if the client left before one was sent.
        user: the token's subject, None without a token.
        ms: from the request's first line to the last byte.
        pod: the pod that it was for; None where there is one alone.
        waited_ms: how long it was held for the pod; None if it was not.
        run: the pod's run that served it.
        bytes_out: length of the body, where known.
        ending: why the response is incomplete, None if it is complete.
        reason: of a 401 or 403; says nothing of the token.
    """

    def __init__(self, output: Output) -> None:
        self.use(output)

    def use(self, output: Output) -> None:
        """Write to this output from now on."""
        self._write = output.sink.write
        self._json = output.json
        self._redacted = output.redacted
        self._paths: dict[str, str] = {}
        self.enabled = output.level <= logging.INFO

    def request(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        status: int,
        user: str | None,
        ms: float,
        pod: str | None = None,
        waited_ms: float | None = None,
        run: int | None = None,
        bytes_out: int | None = None,
        ending: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Write the line; the class explains the arguments."""
        if not self.enabled:
            return
        line: dict[str, object] = {
            "time": datetime.now(UTC),
            "level": "info",
            "event": "request",
            "request_id": request_id,
            "method": method,
            "path": self._paths.get(path) or self._shown_path(path),
            "status": status,
            "user": user,
            "ms": round(ms, 2),
        }
        if pod is not None:
            line["pod"] = pod
        if waited_ms is not None:
            line["waited_ms"] = round(waited_ms, 1)
        if run is not None:
            line["run"] = run
        if bytes_out is not None:
            line["bytes_out"] = bytes_out
        if ending is not None:
            line["ending"] = ending
        if reason is not None:
            line["reason"] = reason
        self._write(_json_line(line) if self._json else _console_line(line))

    def _shown_path(self, path: str) -> str:
        """Return the path as it is logged. Few different paths are in use, so they are cached."""
        shown = truncate(self._redacted(path.partition("?")[0])[:_MAX_PATH_LENGTH])
        if len(self._paths) >= _CACHED_PATHS:
            self._paths.clear()
        if shown == path:  # else the path may hold a token, which must not stay in memory
            self._paths[path] = shown
        return shown


_CONSOLE_FIELDS = ("user", "pod", "waited_ms", "run", "bytes_out", "ending", "reason", "request_id")


def _console_line(line: dict[str, object]) -> bytes:
    summary = f"{line['method']} {line['path']} {line['status']}  {line['ms']} ms"
    rest = " ".join(f"{name}={line[name]}" for name in _CONSOLE_FIELDS if line.get(name) is not None)
    text = f"{_short_time(line['time'])} [info     ] {one_line(f'{summary}  {rest}')}\n"
    return text.encode("utf-8", "backslashreplace")


def log_crash(name: str, error: BaseException) -> None:
    """Log that a task has crashed; the `on_crash` of `tasks.spawn`."""
    structlog.get_logger().error("task crashed", task=name, exc_info=error)


def _short_time(time: object) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}Z"


def _is_terminal(stream: IO[Any] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (ValueError, AttributeError):  # closed, or only half a stream
        return False
