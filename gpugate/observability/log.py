"""Where log lines go and what they look like: listeners only; must not know pods, routes or settings.

Two ways lead to the same place. Ordinary lines go through structlog's processors, and so do those
of the standard library's loggers (aiohttp's). The line of each request is on the hot path and is
built by hand: a dict, one encoding, one write.

A log is not worth a request: a full disk or a closed stderr costs lines, which are counted, and
nothing else. A line is written in one piece, without a buffer of ours, so a crash loses none.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import IO, Any, Literal

import orjson
import structlog
from attrs import define, field
from structlog.typing import EventDict, WrappedLogger

from gpugate.observability.redact import Redactor, many_lines, one_line, redact_value, redactor, truncate

Format = Literal["auto", "console", "json"]

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_MANY_LINES = frozenset({"exception", "stack"})
_PATHS_KEPT = 256
_LONGEST_PATH = 1024
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE


class Sink:
    """A stream that takes whole lines and never raises; `lost` counts those it could not take."""

    def __init__(self, stream: IO[Any] | None) -> None:
        self.lost = 0
        self._put = _putter(stream)
        self._torn = False

    def write(self, line: bytes) -> None:
        """Hand one line, with its newline, to the stream."""
        if self._torn:  # half a line got out before the disk was full: do not continue it
            line = b"\n" + line
        whole = len(line)
        try:
            while line and (taken := self._put(line)):
                line = line[taken:]
        except (OSError, ValueError, AttributeError):  # full, gone, closed
            pass
        if line:
            self.lost += 1
            self._torn = len(line) < whole or self._torn
        else:
            self._torn = False


def _putter(stream: IO[Any] | None) -> Callable[[bytes], int | None]:
    """How bytes get into a stream of any kind, past its buffers; 0 or None: it took nothing."""
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
    """What `configure` set up, for those that write lines of their own."""

    sink: Sink
    json: bool
    level: int
    redacted: Redactor = field(repr=False)


def configure(
    style: Format = "auto",
    level: str = "info",
    stream: IO[Any] | None = None,
    *,
    secrets: Iterable[str] = (),
) -> Output:
    """Send structlog's and the standard library's lines to `stream`; may be called again.

    Args:
        style: "json" is one object a line; "auto" is "console" on a terminal.
        level: the least level that is written.
        stream: binary or text, stderr if None.
        secrets: values that are taken out wherever they appear.

    Raises:
        ValueError: no such style or level.
    """
    if style not in ("auto", "console", "json") or level.lower() not in LEVELS:
        raise ValueError(f"no log style {style!r} or no log level {level!r}")
    stream = sys.stderr if stream is None else stream
    terminal = _is_terminal(stream)
    as_json = style == "json" or (style == "auto" and not terminal)
    output = Output(Sink(stream), as_json, LEVELS[level.lower()], redactor(secrets))
    lines = _Lines(output, colours=terminal and not os.environ.get("NO_COLOR"))
    structlog.configure(
        processors=[lines],
        wrapper_class=structlog.make_filtering_bound_logger(output.level),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    _bridge(lines, output)
    return output


class AccessLog:
    """One line for each request, when it has ended.

    Its fields:
        request_id: a sane one, see `proxy.error_format.request_id`.
        path: as the client sent it; its query is left out, and what looks like a secret.
        status: that was sent; 499 if the client left before there was one.
        user: the token's subject, None without a token.
        ms: from the request's first line to the last byte.
        waited_ms: how long it was held for the pod; None if it was not.
        run: the pod's run that served it.
        bytes_out: of the body, where known.
        ending: how the answer ended, None if completely.
    """

    def __init__(self, output: Output) -> None:
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
        waited_ms: float | None = None,
        run: int | None = None,
        bytes_out: int | None = None,
        ending: str | None = None,
    ) -> None:
        """Write the line; the arguments are explained above."""
        if not self.enabled:
            return
        line: dict[str, object] = {
            "time": datetime.now(UTC),
            "level": "info",
            "event": "request",
            "request_id": request_id,
            "method": method,
            "path": self._paths.get(path) or self._shown(path),
            "status": status,
            "user": user,
            "ms": round(ms, 2),
        }
        if waited_ms is not None:
            line["waited_ms"] = round(waited_ms, 1)
        if run is not None:
            line["run"] = run
        if bytes_out is not None:
            line["bytes_out"] = bytes_out
        if ending is not None:
            line["ending"] = ending
        self._write(_json_line(line) if self._json else _console_line(line))

    def _shown(self, path: str) -> str:
        """The path as it is logged. There are few paths, so they are kept."""
        shown = truncate(self._redacted(path.partition("?")[0])[:_LONGEST_PATH])
        if len(self._paths) >= _PATHS_KEPT:
            self._paths.clear()
        self._paths[path] = shown
        return shown


class TransitionLog:
    """One line for each transition of the pod; a listener of the lifecycle."""

    def __init__(self) -> None:
        self._log: WrappedLogger = structlog.get_logger()

    def __call__(
        self,
        was: str,
        now: str,
        cause: str,
        run: int | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        """Write the line: at level warning if `fields` has an "error", else info."""
        extra = dict(fields or {})
        write = self._log.warning if extra.get("error") else self._log.info
        write("pod", **{**extra, "was": was, "now": now, "cause": cause, "run": run})


def log_crash(name: str, error: BaseException) -> None:
    """Write down that a task crashed; the `on_crash` of `tasks.spawn`."""
    structlog.get_logger().error("task crashed", task=name, exc_info=error)


class _Lines:
    """The whole way of an ordinary line. It is structlog's one processor, and the bridge's as well."""

    def __init__(self, output: Output, *, colours: bool) -> None:
        self._sink = output.sink
        self._steps: list[Callable[[Any, str, Any], Any]] = [
            structlog.contextvars.merge_contextvars,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,  # plain tracebacks: no local variables, which hold tokens
            _Cleaner(output),
            _render_json if output.json else _ConsoleRenderer(colours),
        ]

    def write(self, method: str, event: Any) -> None:
        """Write a line; one that cannot be put into words is counted as lost, and harms nobody."""
        try:
            for step in self._steps:
                event = step(None, method, event)
        except Exception:  # a renderer met a value it was not made for
            self._sink.lost += 1
        else:
            self._sink.write(event)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        self.write(method, event)
        raise structlog.DropEvent  # it is written: structlog's own logger gets nothing


class _Bridge(logging.Handler):
    """Takes the standard library's records the same way."""

    def __init__(self, lines: _Lines, output: Output) -> None:
        super().__init__(output.level)
        self._lines = lines
        self._sink = output.sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; one that cannot be formatted is counted as lost."""
        try:
            event: dict[str, Any] = {"event": record.getMessage(), "logger": record.name}
        except Exception:  # arguments that do not fit the text, or a str() that raises
            self._sink.lost += 1
            return
        if record.exc_info:
            event["exc_info"] = record.exc_info
        self._lines.write(record.levelname.lower(), event)


def _bridge(lines: _Lines, output: Output) -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge(lines, output))
    root.setLevel(output.level)


class _Cleaner:
    """Puts time, level and event first, and takes secrets out of everything."""

    def __init__(self, output: Output) -> None:
        self._redacted = output.redacted
        self._one_line = not output.json

    def __call__(self, logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> EventDict:
        told = redact_value("event", event.pop("event", ""), self._redacted)
        cleaned: dict[str, object] = {"time": datetime.now(UTC), "level": method, "event": told}
        for name, value in event.items():
            name = f"{name}_" if name in cleaned else truncate(str(name))
            cleaned[name] = redact_value(name, value, self._redacted)
        return self._on_its_line(cleaned) if self._one_line else cleaned

    def _on_its_line(self, cleaned: dict[str, object]) -> dict[str, object]:
        shown: dict[str, object] = {}
        for name, value in cleaned.items():
            plain = value if value is None or isinstance(value, bool | int | float) else str(value)
            if isinstance(plain, str):
                plain = many_lines(plain) if name in _MANY_LINES else one_line(plain)
            shown[one_line(name)] = plain
        shown["time"] = _short_time(cleaned["time"])
        return shown


class _ConsoleRenderer:
    """structlog's, for people: bytes with a newline at the end."""

    def __init__(self, colours: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(
            colors=colours,
            timestamp_key="time",
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        return str(self._render(logger, method, event)).encode("utf-8", "backslashreplace") + b"\n"


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    return _json_line(event)


def _json_line(line: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(line, option=_OPTIONS)
    except TypeError:  # text beyond UTF-8, from a client's raw bytes
        return orjson.dumps(
            {name: redact_value("", value, truncate) for name, value in line.items()}, option=_OPTIONS
        )


def _console_line(line: dict[str, object]) -> bytes:
    told = f"{line['method']} {line['path']} {line['status']}  {line['ms']} ms"
    rest = " ".join(f"{name}={line[name]}" for name in _SHOWN_BEHIND if line.get(name) is not None)
    text = f"{_short_time(line['time'])} [info     ] {one_line(f'{told}  {rest}')}\n"
    return text.encode("utf-8", "backslashreplace")


_SHOWN_BEHIND = ("user", "waited_ms", "run", "bytes_out", "ending", "request_id")


def _short_time(time: object) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}Z"


def _is_terminal(stream: IO[Any] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (ValueError, AttributeError):  # closed, or only half a stream
        return False
