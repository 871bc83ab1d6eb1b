"""Where lines go, what they look like, and what can go wrong with them."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from attrs import evolve

from gpugate.core.commands import StopCause
from gpugate.core.events import Cause
from gpugate.core.states import StateName, Status
from gpugate.lifecycle.status import StateChanged
from gpugate.observability.event_log import log_event
from gpugate.observability.log import AccessLog, Output, Sink, configure, log_crash

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"


class Log:
    """A configured log whose lines a test can read."""

    def __init__(self, style: Any = "json", level: str = "debug", **options: Any) -> None:
        self.stream = io.BytesIO()
        self.output = configure(style, level, self.stream, **options)

    @property
    def text(self) -> str:
        return self.stream.getvalue().decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in self.text.splitlines()]
        for line in parsed:
            assert line.pop("time").endswith("Z")
        return parsed


def request(log: AccessLog, **changes: Any) -> None:
    fields = {
        "request_id": "r1",
        "method": "POST",
        "path": "/api/chat",
        "status": 200,
        "user": "ann",
        "ms": 1.2345,
    }
    log.request(**{**fields, **changes})


class TestOrdinaryLines:
    def test_json(self) -> None:
        """One object a line: time, level, event, and the fields."""
        log = Log()
        structlog.get_logger().info("started", port=11434)

        assert [{"level": "info", "event": "started", "port": 11434}] == log.lines
        assert log.text.startswith('{"time":')

    def test_console(self) -> None:
        """For people: one line without colours where there is no terminal."""
        log = Log("console")
        structlog.get_logger().warning("started", port=11434, text="a\x1b[2J\nb")

        assert "[warning  ] started                        port=11434 text=a\\x1b[2J\\nb\n" == log.text[21:]

    @pytest.mark.parametrize("style", ["json", "console"])
    def test_level(self, style: str) -> None:
        """Lines below the level are not written, from whichever logger."""
        log = Log(style, "warning")
        structlog.get_logger().info("one")
        logging.getLogger("aiohttp.server").info("two")
        request(AccessLog(log.output))
        log_event(step())

        assert "" == log.text

    def test_standard_library(self) -> None:
        """aiohttp's records look the same and are cleaned the same."""
        log = Log()
        logging.getLogger("aiohttp.server").error("Error for %s", f"Bearer {JWT}")

        expected = {"level": "error", "event": "Error for Bearer [redacted]", "logger": "aiohttp.server"}
        assert [expected] == log.lines

    def test_context(self) -> None:
        """What is bound to the context is in each line."""
        log = Log()
        structlog.contextvars.bind_contextvars(run=3, token="hush")
        structlog.get_logger().info("x")
        logging.getLogger("y").info("y")

        assert [(3, "[redacted]")] * 2 == [(line["run"], line["token"]) for line in log.lines]

    @pytest.mark.parametrize("style", ["json", "console"])
    def test_exception(self, style: str) -> None:
        """A traceback has no local variables, and no secret of its message."""
        log = Log(style)

        def failing() -> None:
            local = "local" + "-variable"
            raise ValueError(f"cannot use {JWT}\x1b[2J", len(local))

        for logger in (structlog.get_logger(), logging.getLogger("x")):
            try:
                failing()
            except ValueError:
                logger.exception("failed")
        assert 2 == log.text.count("ValueError: ")
        assert 2 == log.text.count("Traceback (most recent")
        assert ("local-variable" in log.text, JWT in log.text, "\x1b" in log.text) == (False, False, False)

    def test_secrets(self) -> None:
        """Names, shapes and known values: none of them is written."""
        log = Log(secrets=["correct-horse"])
        structlog.get_logger().info(
            "at correct-horse", api_key="hush", url="http://a:b@c/", prompt="dear diary"
        )

        for secret in ("horse", "hush", "a:b", "diary"):
            assert secret not in log.text

    def test_configured_twice(self) -> None:
        """The last configuration counts, and a line is written once."""
        first, second = Log(), Log()
        logging.getLogger("x").warning("x")
        structlog.get_logger().warning("x")

        assert (0, 2) == (len(first.lines), len(second.lines))

    def test_fields_with_our_names(self) -> None:
        """A caller's field cannot take the place of ours."""
        log = Log()
        structlog.get_logger().info("x", time=5, level="debug")

        assert [{"level": "info", "event": "x", "time_": 5, "level_": "debug"}] == log.lines

    @pytest.mark.parametrize("style", ["json", "console"])
    @pytest.mark.parametrize(
        "fields", [{"exception": 5}, {"logger": 5}, {"stack": {}}, {"exc_info": "x"}, {"x": "\udcff"}]
    )
    def test_strange_fields(self, style: str, fields: dict[str, Any]) -> None:
        """No field makes logging raise."""
        log = Log(style)
        structlog.get_logger().info("x", **fields)

        assert (log.output.sink.lost, bool(log.text)) in [(0, True), (1, False)]

    def test_record_that_cannot_be_formatted(self) -> None:
        """Wrong arguments cost the line and nothing else: no report with the arguments in it."""
        log = Log()
        root = logging.getLogger()
        root.handlers[:] = root.handlers[-1:]  # the test runner's own would raise
        logging.getLogger("x").warning("%d", "secret")

        assert ("", 1) == (log.text, log.output.sink.lost)

    @pytest.mark.parametrize(("style", "level"), [("xml", "info"), ("json", "loud")])
    def test_no_such_style(self, style: Any, level: str) -> None:
        """A style or level that does not exist is said at once."""
        with pytest.raises(ValueError, match="no log style"):
            configure(style, level, io.BytesIO())


CUT = {"ending": "upstream_lost"}


class TestRequests:
    def test_json(self) -> None:
        """One line says who asked what, and how it went."""
        log = Log()
        request(AccessLog(log.output))
        request(AccessLog(log.output), user=None, waited_ms=4100.04, run=7, bytes_out=9, status=503, **CUT)

        common = {
            "level": "info",
            "event": "request",
            "request_id": "r1",
            "method": "POST",
            "path": "/api/chat",
        }
        first = {**common, "status": 200, "user": "ann", "ms": 1.23}
        second = {
            **common,
            "status": 503,
            "user": None,
            "ms": 1.23,
            "waited_ms": 4100.0,
            "run": 7,
            "bytes_out": 9,
            "ending": "upstream_lost",
        }
        assert [first, second] == log.lines

    def test_console(self) -> None:
        """The same for people."""
        log = Log("console")
        request(AccessLog(log.output), pod="large", waited_ms=4100.04, user="ann\nbob", **CUT)

        told = (
            "POST /api/chat 200  1.23 ms  user=ann\\nbob pod=large waited_ms=4100.0"
            " ending=upstream_lost request_id=r1"
        )
        assert f"[info     ] {told}\n" == log.text[21:]

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/k/hush/api/tags", "/k/[redacted]/api/tags"),
            ("/api/tags?token=hush", "/api/tags"),
            (f"/api/{JWT}", "/api/[redacted]"),
            ("/\udcff", "/\\udcff"),
            ("/grüße", "/grüße"),
            ("/" + "x" * 5000, "/" + "x" * 1023),
        ],
    )
    @pytest.mark.parametrize("style", ["json", "console"])
    def test_path(self, style: str, path: str, shown: str) -> None:
        """A path is shown without its query and without secrets, the second time as well."""
        log = Log(style)
        access = AccessLog(log.output)
        request(access, path=path)
        request(access, path=path)

        if style == "json":
            assert [shown] * 2 == [line["path"] for line in log.lines]
        else:
            assert [f" POST {shown} 200 "] * 2 == [
                line[32 : 32 + len(shown) + 11] for line in log.text.splitlines()
            ]

    def test_odd_method(self) -> None:
        """Bytes that are no text do not cost the line."""
        log = Log()
        request(AccessLog(log.output), method="G\udcff")

        assert ["G\\udcff"] == [line["method"] for line in log.lines]

    def test_many_paths(self) -> None:
        """A scanner's paths are not kept for ever."""
        access = AccessLog(Log().output)
        for number in range(2000):
            request(access, path=f"/{number}")

        assert len(access._paths) <= 256


def step(
    was: StateName = StateName.READY,
    now: StateName = StateName.STOPPING,
    cause: Cause = Cause.DEADLINE_REACHED,
) -> StateChanged:
    return StateChanged(
        was=was,
        now=now,
        was_status=Status.READY,
        status=Status.STOPPING,
        cause=cause,
        run_id=3,
        provider="demo",
        at=datetime(2026, 12, 1, tzinfo=UTC),
    )


class TestTransitions:
    def test_one_of_several_pods(self) -> None:
        """Its lines name it; those of the pod without a name are as ever."""
        log = Log()
        log_event(evolve(step(), pod="large"))
        log_event(step())

        assert ["large", None] == [line.get("pod") for line in log.lines]

    def test_line(self) -> None:
        """One line says what happens, from which state to which, why, and in which run."""
        log = Log()
        log_event(evolve(step(), stop_cause=StopCause.IDLE, idle_s=900.2))
        log_event(step(StateName.WARMING, StateName.READY, Cause.PROBE_FINISHED))

        common = {"level": "info", "event": "pod", "status": "STOPPING", "provider": "demo", "run": 3}
        first = {
            "message": "idle for 15 min, stopping the pod",
            "was": "Ready",
            "now": "Stopping",
            "cause": "idle",
        }
        second = {"message": "the pod serves", "was": "Warming", "now": "Ready", "cause": "ProbeFinished"}
        assert [{**common, **first}, {**common, **second}] == log.lines

    @pytest.mark.parametrize(
        ("cause", "idle_s", "message"),
        [
            (StopCause.IDLE, 45.0, "idle for 45 s, stopping the pod"),
            (StopCause.IDLE, 9000.0, "idle for 2 h 30 min, stopping the pod"),
            (StopCause.MAX_SESSION, 3.0, "the session is at its limit, stopping the pod"),
            (StopCause.SHUTDOWN, None, "gpugate shuts down, stopping the pod"),
        ],
    )
    def test_stop(self, cause: StopCause, idle_s: float | None, message: str) -> None:
        """The line of a stop says why, in words for people."""
        log = Log()
        log_event(evolve(step(), stop_cause=cause, idle_s=idle_s))
        assert message == log.lines[0]["message"]

    def test_each_stop_has_words(self) -> None:
        """No cause of a stop fails to be logged."""
        log = Log()
        for cause in StopCause:
            log_event(evolve(step(), stop_cause=cause))
        assert len(StopCause) == len({line["message"] for line in log.lines})

    def test_each_state_has_a_message(self) -> None:
        """No state change fails to be logged."""
        log = Log()
        for name in StateName:
            log_event(step(now=name))

        assert len(StateName) == len({line["message"] for line in log.lines})

    def test_crash(self) -> None:
        """A crashed task leaves its name and its traceback."""
        log = Log()
        log_crash("jwks", ValueError("boom"))

        (line,) = log.lines
        assert ("error", "task crashed", "jwks") == (line["level"], line["event"], line["task"])
        assert "ValueError: boom" in line["exception"]


class TestBadLuck:
    def lost(self, output: Output) -> int:
        request(AccessLog(output))
        structlog.get_logger().error("x")
        logging.getLogger("x").error("x")
        return output.sink.lost

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full_disk(self) -> None:
        """A full disk costs the lines and nothing else."""
        with open("/dev/full", "wb", buffering=0) as full:
            assert 3 == self.lost(configure("json", "info", full))

    def test_closed(self) -> None:
        """So does a stream that is closed, or was never there."""
        stream = open(os.devnull, "wb")  # noqa: SIM115
        stream.close()

        assert 3 == self.lost(configure("json", "info", stream))

    def test_no_stderr(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process without a stderr can log into nothing."""
        monkeypatch.setattr(sys, "stderr", None)

        assert 3 == self.lost(configure())

    def test_reader_gone(self) -> None:
        """A pipe that nobody reads any more is no reason to die."""
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as stream:
            assert 3 == self.lost(configure("json", "info", stream))

    def test_full_pipe(self) -> None:
        """A pipe that must not block loses lines when it is full, and goes on with whole ones."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as stream:
            sink = Sink(stream)
            for _ in range(100):
                sink.write(b"x" * 9000 + b"\n")
            lost = sink.lost
            os.read(reader.fileno(), 60_000)
            sink.write(b"whole\n")
            stream.close()

            assert lost > 80
            assert b"whole" == reader.read().splitlines()[-1]

    def test_text_streams(self) -> None:
        """Text streams work too, with bytes below them or without."""
        plain, wrapped = io.StringIO(), io.TextIOWrapper(io.BytesIO())
        Sink(plain).write("grüße\n".encode())
        Sink(wrapped).write("grüße\n".encode())
        wrapped.buffer.seek(0)

        assert ("grüße\n", "grüße\n".encode()) == (plain.getvalue(), wrapped.buffer.read())

    def test_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a terminal lines are for people, with colours unless they are not wanted."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        main, terminal = pty.openpty()
        with os.fdopen(terminal, "w") as stream:
            assert configure("auto", "info", stream).json is False
            structlog.get_logger().info("hello")
            assert b"\x1b[" in os.read(main, 1000)
            monkeypatch.setenv("NO_COLOR", "1")
            configure("auto", "info", stream)
            structlog.get_logger().info("hello")
            assert b"\x1b[" not in os.read(main, 1000)
        os.close(main)
