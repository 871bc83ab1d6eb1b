"""An HTTP client for a running gateway.

It uses http.client: a command makes one request at a time, and importing aiohttp would take longer than that.
"""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from gpugate.cli.errors import WRONG, CliError
from gpugate.cli.settings import settings_as_given, url_of
from gpugate.cli.token_commands import sign_token
from gpugate.config.validators import is_url

_TIMEOUT_S = 30.0  # start and stop are accepted at once; no other request takes longer
_TOKEN_LIFETIME_S = 300.0
_ADDRESS_HINT = "`gpugate serve` starts one; GPUGATE_URL names another address"


@frozen
class DatedData:
    """The `data` of a response, and when it was true by the gateway's clock."""

    data: Any
    at: datetime | None


@frozen
class GatewayClient:
    """Requests to one gateway, with one token. Every failure is a CliError with one line."""

    url: str
    token: str = field(repr=False)

    def get(self, path: str) -> Any:
        """Return the `data` of a response."""
        return self.ask("GET", path).data

    def ask(self, method: str, path: str) -> DatedData:
        """Send a request without a body and return the `data` of the response with its time."""
        answer = self._answer(method, path)
        try:
            at = datetime.fromisoformat(answer["meta"]["timestamp"])
        except (KeyError, TypeError, ValueError):
            at = None
        return DatedData(answer["data"], at)

    def text(self, path: str) -> str:
        """Return a response as text."""
        response = self.open("GET", path)
        try:
            return response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise self._connection_error(error) from None
        finally:
            response.close()

    def lines(self, path: str) -> Iterator[str]:
        """Yield the lines of an endless response, without a timeout between two lines."""
        response = self.open("GET", path, endless=True, accept="text/event-stream")
        try:
            while line := response.readline():
                yield line.decode(errors="replace").rstrip("\r\n")
        except (OSError, HTTPException) as error:
            raise self._connection_error(error) from None
        finally:
            response.close()

    def open(
        self, method: str, path: str, *, endless: bool = False, accept: str = "application/json"
    ) -> HTTPResponse:
        """Return a response with a status below 300; raise CliError for any other, and for none."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port or kind.default_port, timeout=_TIMEOUT_S)
        headers = {"Accept": accept, "Connection": "close"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, parts.path.rstrip("/") + path, headers=headers)
            if endless and connection.sock is not None:
                connection.sock.settimeout(None)
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise self._connection_error(error) from None
        if response.status >= 300:
            with response:
                raise self._error_of(response)
        return response

    def _answer(self, method: str, path: str) -> dict[str, Any]:
        response = self.open(method, path)
        try:
            answer = json.loads(response.read())
        except ValueError:
            answer = None
        except (OSError, HTTPException) as error:
            raise self._connection_error(error) from None
        finally:
            response.close()
        if not isinstance(answer, dict) or "data" not in answer:
            raise CliError(f"{self.url} does not answer as gpugate does")
        return answer

    def _error_of(self, response: HTTPResponse) -> CliError:
        try:
            error = json.loads(response.read(65536))["error"]
            code, message = error["code"], error["message"]
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return CliError(f"{self.url} answers with status {response.status}, and not as gpugate does")
        if response.status == 401:
            message += _token_hint(self.token)
        elif response.status == 404 and message == "not found":
            message = f"there is nothing at {self.url} (GPUGATE_URL)"
        return CliError(f"{code}: {message}")

    def _connection_error(self, error: Exception) -> CliError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return CliError(f"no gateway at {self.url}: {reason} ({_ADDRESS_HINT})")


def _token_hint(token: str) -> str:
    if not token:
        return ": set GPUGATE_TOKEN, or use a configuration with auth.secret"
    return (
        " (GPUGATE_TOKEN)"
        if os.environ.get("GPUGATE_TOKEN")
        else " (signed with this configuration's secret)"
    )


def connect(args: Namespace) -> GatewayClient:
    """Return a client for GPUGATE_URL with GPUGATE_TOKEN; without them, from the configuration.

    Raises:
        CliError: (WRONG) one of the two is invalid.
        SettingsError: the configuration is needed and invalid.
    """
    url, token = os.environ.get("GPUGATE_URL", ""), os.environ.get("GPUGATE_TOKEN", "").strip()
    if url and not is_url(url, ("http", "https")):
        raise CliError("GPUGATE_URL: must be a URL such as http://127.0.0.1:11434", WRONG)
    if token and not re.fullmatch(r"[!-~]+", token):
        raise CliError("GPUGATE_TOKEN: is not a token", WRONG)
    if not (url and token):
        settings = settings_as_given(args)
        url = url or url_of(settings)
        if not token and settings.auth.secret:
            token = sign_token(settings, "gpugate-cli", None, _TOKEN_LIFETIME_S)
    return GatewayClient(url.rstrip("/"), token)
