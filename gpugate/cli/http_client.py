"""A running gateway, spoken to over HTTP with the standard library; knows none of its endpoints.

http.client and not aiohttp: one request at a time needs no loop, and `gpugate status` answers at once.
"""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from gpugate.cli.errors import WRONG, Failure
from gpugate.cli.settings import settings_as_given
from gpugate.cli.token_commands import signed
from gpugate.cli.urls import url_of
from gpugate.config.validators import is_url

_PATIENCE_S = 30.0  # start and stop are accepted at once; nothing asked here takes longer
_OWN_TOKEN_S = 300.0


@frozen
class Gateway:
    """One gateway and the token it is asked with."""

    url: str
    token: str = field(repr=False)

    def get(self, path: str) -> Any:
        """Return the `data` of an answer."""
        return self._data("GET", path)

    def post(self, path: str) -> Any:
        """Return the `data` of an answer to a POST without a body."""
        return self._data("POST", path)

    def text(self, path: str) -> str:
        """Return an answer as text."""
        response = self.open("GET", path)
        try:
            return response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise self._lost(error) from None
        finally:
            response.close()

    def lines(self, path: str) -> Iterator[str]:
        """Yield the lines of an answer that goes on; it may be silent for as long as it likes."""
        response = self.open("GET", path, endless=True, accept="text/event-stream")
        try:
            while line := response.readline():
                yield line.decode(errors="replace").rstrip("\r\n")
        except (OSError, HTTPException) as error:
            raise self._lost(error) from None
        finally:
            response.close()

    def open(
        self, method: str, path: str, *, endless: bool = False, accept: str = "application/json"
    ) -> HTTPResponse:
        """Return a good answer; raise Failure, one line, for any other and for none."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port or kind.default_port, timeout=_PATIENCE_S)
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
            raise self._lost(error) from None
        if response.status >= 300:
            with response:
                raise self._refused(response)
        return response

    def _data(self, method: str, path: str) -> Any:
        response = self.open(method, path)
        try:
            answer = json.loads(response.read())
        except ValueError:
            answer = None
        except (OSError, HTTPException) as error:
            raise self._lost(error) from None
        finally:
            response.close()
        if not isinstance(answer, dict) or "data" not in answer:
            raise Failure(f"{self.url} does not answer as gpugate does")
        return answer["data"]

    def _refused(self, response: HTTPResponse) -> Failure:
        try:
            error = json.loads(response.read(65536))["error"]
            code, message = error["code"], error["message"]
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return Failure(f"{self.url} answers with status {response.status}, and not as gpugate does")
        if response.status == 401 and not self.token:
            message = f"{message}: set GPUGATE_TOKEN, or use a configuration with auth.secret"
        return Failure(f"{code}: {message}")

    def _lost(self, error: Exception) -> Failure:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Failure(f"no gateway at {self.url}: {reason}")


def gateway(args: Namespace) -> Gateway:
    """Return the gateway of GPUGATE_URL and GPUGATE_TOKEN; what is not set comes from the configuration.

    Raises:
        Failure: (2) one of the two cannot be used.
        SettingsError: the configuration was needed and is wrong.
    """
    url, token = os.environ.get("GPUGATE_URL", ""), os.environ.get("GPUGATE_TOKEN", "").strip()
    if url and not is_url(url, ("http", "https")):
        raise Failure("GPUGATE_URL: must be a URL such as http://127.0.0.1:11434", WRONG)
    if token and not re.fullmatch(r"[!-~]+", token):
        raise Failure("GPUGATE_TOKEN: is no token", WRONG)
    if not (url and token):
        settings = settings_as_given(args)
        url = url or url_of(settings)
        if not token and settings.auth.secret:
            token = signed(settings, "gpugate-cli", None, _OWN_TOKEN_S)
    return Gateway(url.rstrip("/"), token)
