"""What an error looks like to each kind of client."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate import errors
from gpugate.errors import GateError
from gpugate.proxy import error_format
from gpugate.proxy.error_format import (
    Dialect,
    dialect_of,
    error_body,
    request_id,
    status_of,
    stream_error,
    success,
)

NOW = 1_800_000_000.25
META = {"requestId": "r1", "timestamp": "2027-01-15T08:00:00.250Z"}


def leaves(kind: type[GateError]) -> list[type[GateError]]:
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


def body(dialect: Dialect, error: GateError) -> object:
    return json.loads(error_body(dialect, error, "r1", NOW)[1])


def headers(error: GateError, dialect: Dialect = Dialect.OPENAI) -> dict[str, str]:
    listed = error_body(dialect, error, "r1", NOW)[2]
    assert len(listed) == len(dict(listed))
    return dict(listed)


class TestWhichDialect:
    @pytest.mark.parametrize(
        ("path", "dialect"),
        [
            ("/api/v1/health", Dialect.ENVELOPE),
            ("/api/v1/chat", Dialect.ENVELOPE),
            ("/api/v1", Dialect.ENVELOPE),
            ("/api/v1/", Dialect.ENVELOPE),
            ("/api/v10/x", Dialect.OLLAMA),
            ("/api/chat", Dialect.OLLAMA),
            ("/api/", Dialect.OLLAMA),
            ("/api", Dialect.OLLAMA),
            ("/apis/x", Dialect.ENVELOPE),
            ("/v1/messages", Dialect.ANTHROPIC),
            ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
            ("/v1/messagesx", Dialect.OPENAI),
            ("/v1/chat/completions", Dialect.OPENAI),
            ("/v1", Dialect.OPENAI),
            ("/v10/chat", Dialect.ENVELOPE),
            ("/", Dialect.ENVELOPE),
            ("", Dialect.ENVELOPE),
            ("/dashboard", Dialect.ENVELOPE),
        ],
    )
    def test_path(self, path: str, dialect: Dialect) -> None:
        """The path decides, by whole segments."""
        assert dialect is dialect_of(path)


class TestStatus:
    @pytest.mark.parametrize(
        "kind", [kind for kind in leaves(GateError) if kind.__module__ == errors.__name__]
    )
    def test_every_error(self, kind: type[GateError]) -> None:
        """Each error has a row of its own or its family's, and not just the last resort."""
        assert error_format.STATUS.keys() & (set(kind.__mro__) - {GateError})

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("INVALID_TOKEN", 401),
            ("TOKEN_EXPIRED", 401),
            ("FORBIDDEN", 403),
            ("INVALID_REQUEST", 400),
            ("PAYLOAD_TOO_LARGE", 413),
            ("NOT_FOUND", 404),
            ("METHOD_NOT_ALLOWED", 405),
            ("QUEUE_FULL", 503),
            ("QUEUE_TIMEOUT", 503),
            ("POD_START_FAILED", 503),
            ("WARMUP_TIMEOUT", 503),
            ("POD_STOPPED", 503),
            ("PROVIDER_UNAVAILABLE", 503),
            ("BUDGET_EXCEEDED", 402),
            ("SHUTTING_DOWN", 503),
            ("STANDBY", 503),
            ("UPSTREAM_ERROR", 502),
            ("UPSTREAM_TIMEOUT", 504),
            ("POD_BUSY", 409),
            ("INTERNAL_ERROR", 500),
        ],
    )
    def test_contract(self, code: str, status: int) -> None:
        """The statuses of docs/api.md#error-codes."""
        found = {status_of(kind()) for kind in leaves(GateError) if kind.code == code}

        assert {status} == found

    def test_newcomer(self) -> None:
        """An error that is new has the status of its nearest ancestor."""
        assert 503 == status_of(type("Sleepy", (errors.QueueFull,), {})())


class TestShapes:
    def test_envelope(self) -> None:
        """gpugate's own endpoints answer in the envelope."""
        told = {
            "code": "POD_START_FAILED",
            "message": "no GPU is free",
            "retryAfter": 60,
            "reason": "capacity",
        }
        expected = {"status": "error", "data": None, "error": told, "meta": META}

        assert expected == body(Dialect.ENVELOPE, errors.PodStartFailed("no GPU is free", reason="capacity"))

    def test_envelope_without_hints(self) -> None:
        """What is not known is left out."""
        expected = {"code": "INVALID_TOKEN", "message": "token is missing or malformed"}

        assert expected == body(Dialect.ENVELOPE, errors.InvalidToken())["error"]  # type: ignore[index]

    def test_ollama(self) -> None:
        """Ollama's clients want a string; ours stand beside it."""
        expected = {
            "error": "no",
            "code": "POD_START_FAILED",
            "retryAfter": 60,
            "reason": "funds",
        }

        assert expected == body(Dialect.OLLAMA, errors.PodStartFailed("no", reason="funds"))

    def test_ollama_without_a_status(self) -> None:
        """Go's client would print a field of this name, in any case, in place of the HTTP status."""
        names = {name.lower() for kind in leaves(GateError) for name in body(Dialect.OLLAMA, kind())}

        assert {"error", "code", "retryafter"} == names

    def test_openai(self) -> None:
        """OpenAI's clients want an object."""
        told = {"message": "no", "type": "api_error", "param": None, "code": "WARMUP_TIMEOUT"}

        assert {"error": told} == body(Dialect.OPENAI, errors.WarmupTimeout("no"))
        assert {"error": {**told, "reason": "x"}} == body(
            Dialect.OPENAI, errors.WarmupTimeout("no", reason="x")
        )

    def test_anthropic(self) -> None:
        """Anthropic's have a type on the outside too."""
        told = {"type": "overloaded_error", "message": "no"}

        assert {"type": "error", "error": told} == body(Dialect.ANTHROPIC, errors.QueueFull("no"))
        told |= {"code": "QUEUE_FULL", "reason": "x"}
        assert {"type": "error", "error": told} == body(Dialect.ANTHROPIC, errors.QueueFull("no", reason="x"))

    @pytest.mark.parametrize(
        ("error", "openai", "anthropic"),
        [
            (errors.InvalidRequest(), "invalid_request_error", "invalid_request_error"),
            (errors.TokenExpired(), "authentication_error", "authentication_error"),
            (errors.Forbidden(), "permission_error", "permission_error"),
            (errors.PathNotFound(), "not_found_error", "not_found_error"),
            (errors.PayloadTooLarge(), "invalid_request_error", "request_too_large"),
            (errors.BudgetExceeded(), "api_error", "api_error"),
            (errors.ShuttingDown(), "api_error", "overloaded_error"),
            (errors.UpstreamBroken(), "api_error", "api_error"),
            (errors.UpstreamTimeout(), "api_error", "api_error"),
        ],
    )
    def test_types(self, error: GateError, openai: str, anthropic: str) -> None:
        """The types are those that the two know."""
        types = [body(dialect, error)["error"]["type"] for dialect in (Dialect.OPENAI, Dialect.ANTHROPIC)]  # type: ignore[index]

        assert [openai, anthropic] == types

    def test_our_own_fault(self) -> None:
        """No detail of an internal error leaks, whoever raises it."""
        for error in (errors.InternalError("secret path"), GateError("secret path")):
            assert all("secret" not in str(body(dialect, error)) for dialect in Dialect)

    def test_many_lines(self) -> None:
        """A message is one line, and never empty."""
        assert "a b" == body(Dialect.OLLAMA, errors.InvalidRequest("a\r\n  b"))["error"]  # type: ignore[index]
        assert "invalid request" == body(Dialect.OLLAMA, errors.InvalidRequest(" "))["error"]  # type: ignore[index]

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=()), max_size=30), st.text(max_size=5) | st.none())
    def test_any_message(self, message: str, reason: str | None) -> None:
        """Any text, surrogates included, gives valid JSON in each dialect."""
        error, kind = errors.UpstreamBroken(message), "application/x-ndjson"
        assert all(body(dialect, errors.InvalidRequest(message, reason=reason)) for dialect in Dialect)
        assert {1} == {stream_error(dialect, error, kind).count(b"\n") for dialect in Dialect}


class TestHeaders:
    def test_content_type(self) -> None:
        """Ollama's JSON says its charset, the others' does not."""
        kinds = {dialect: headers(errors.QueueFull(), dialect)["Content-Type"] for dialect in Dialect}

        assert "application/json; charset=utf-8" == kinds.pop(Dialect.OLLAMA)
        assert {"application/json"} == set(kinds.values())

    @pytest.mark.parametrize("kind", leaves(GateError))
    def test_retry_after(self, kind: type[GateError]) -> None:
        """Each 503 says when to come back, in whole seconds, in header and body alike."""
        hint = headers(kind()).get("Retry-After")
        told = body(Dialect.ENVELOPE, kind())["error"].get("retryAfter")  # type: ignore[index]

        assert (status_of(kind()) == 503) == (hint is not None)
        assert hint == (None if told is None else str(told))
        assert hint is None or int(hint) >= 1

    @pytest.mark.parametrize(
        ("wanted", "hint"),
        [
            (0.0, "1"),
            (0.2, "1"),
            (1.1, "2"),
            (60, "60"),
            (-5, "1"),
            (float("inf"), "86400"),
            (float("nan"), "1"),
        ],
    )
    def test_own_hint(self, wanted: float, hint: str) -> None:
        """An error's own hint is rounded up, whatever number a provider sent."""
        assert hint == headers(errors.QueueFull(retry_after_s=wanted))["Retry-After"]

    def test_default_hint(self) -> None:
        """Sixty seconds for a start that failed, five for the rest."""
        kinds = (errors.PodStartFailed, errors.WarmupTimeout, errors.QueueFull, errors.ShuttingDown)

        assert ["60", "60", "5", "5"] == [headers(kind())["Retry-After"] for kind in kinds]

    def test_libraries_that_retry(self) -> None:
        """A library must not rent the pod again by itself, undo a stop, or run a job twice."""
        found = {kind.code for kind in leaves(GateError) if headers(kind()).get("x-should-retry") == "false"}

        assert {"POD_START_FAILED", "WARMUP_TIMEOUT", "POD_STOPPED", "UPSTREAM_TIMEOUT"} == found

    def test_who_are_you(self) -> None:
        """A 401 names the scheme, and every error its code."""
        assert "Bearer" == headers(errors.TokenExpired())["WWW-Authenticate"]
        assert "TOKEN_EXPIRED" == headers(errors.TokenExpired())["X-Gpugate-Code"]
        assert "WWW-Authenticate" not in headers(errors.Forbidden())


class TestMidStream:
    def test_lines(self) -> None:
        """NDJSON gets one last line, the same on every surface."""
        for dialect in (Dialect.OLLAMA, Dialect.ENVELOPE):
            line = stream_error(
                dialect, errors.UpstreamBroken("gone\nfor good"), "application/x-ndjson; charset=x"
            )
            assert b'{"error":"gone for good"}\n' == line

    def test_events(self) -> None:
        """Server-Sent Events get one with an error object, and no [DONE]."""
        sent = stream_error(Dialect.OPENAI, errors.UpstreamBroken("gone"), "text/event-stream")
        expected = (
            b'data: {"error":{"message":"gone","type":"api_error","param":null,"code":"UPSTREAM_ERROR"}}\n\n'
        )

        assert expected == sent

    def test_broken_event(self) -> None:
        """A broken event is closed by a blank line before."""
        whole = stream_error(Dialect.OPENAI, errors.UpstreamBroken(), "text/event-stream")
        sent = stream_error(Dialect.OPENAI, errors.UpstreamBroken(), "text/event-stream", inside_event=True)

        assert b"\n\n" + whole == sent

    def test_anthropic_events(self) -> None:
        """Anthropic's events have names."""
        sent = stream_error(
            Dialect.ANTHROPIC, errors.UpstreamBroken("gone"), "Text/Event-Stream;charset=utf-8"
        )
        expected = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"gone"}}\n\n'

        assert expected == sent

    @pytest.mark.parametrize("dialect", Dialect)
    def test_plain_json(self, dialect: Dialect) -> None:
        """A plain answer that was held with filler gets the error object of its surface."""
        error = errors.PodStartFailed("no", reason="auth")
        sent = stream_error(dialect, error, "application/json", now=NOW, request_id="r1")

        assert body(dialect, error) == json.loads(sent)

    def test_no_instant_given(self) -> None:
        """The envelope of a held answer is of today."""
        sent = json.loads(stream_error(Dialect.ENVELOPE, errors.QueueTimeout(), "application/json"))

        assert sent["meta"]["timestamp"] > "2026"


class TestEnvelope:
    def test_success(self) -> None:
        """Data in the envelope; money is a number, instants are ISO 8601 in UTC."""
        data = {"cost": Decimal("0.13"), "since": datetime(2026, 11, 1, tzinfo=UTC), "none": None}
        expected = {"cost": 0.13, "since": "2026-11-01T00:00:00Z", "none": None}

        sent = json.loads(success(data, "r1", NOW))
        assert {"status": "success", "data": expected, "error": None, "meta": META} == sent

    def test_text_beyond_utf8(self) -> None:
        """Text that came in as odd bytes is written in a readable way."""
        assert [{"a\\udcff": "\\udcff"}] == json.loads(success([{"a\udcff": "\udcff"}], "r1", NOW))["data"]

    def test_no_json_form(self) -> None:
        """What has no JSON form is our mistake, and is heard."""
        with pytest.raises(TypeError):
            success(object(), "r1", NOW)


class TestRequestId:
    @pytest.mark.parametrize("raw", ["a", "A-b_c.9", "x" * 128, "0f8fad5b-d9cb-469f-a165-70867728950e"])
    def test_sane(self, raw: str) -> None:
        """A client's sane id is kept."""
        assert raw == request_id(raw)

    @pytest.mark.parametrize(
        "raw", [None, "", "x" * 129, "a b", "a\n", "é", "٣", "a:b", '"', "eyJhbGciOi.e30.x"]
    )
    def test_not_sane(self, raw: str | None) -> None:
        """Anything else, and what may be a token, is replaced by a new one."""
        first, second = request_id(raw), request_id(raw)

        assert re.fullmatch("[0-9a-f]{16}", first)
        assert first != second
