"""The calls of Vast.ai's API, one try each, as values or as gpugate's errors; knows no instance's story."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import aiohttp
from attrs import frozen

from gpugate import (
    Ambiguous,
    Blocked,
    Misconfigured,
    NoCapacity,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate_vastai.answers import Answer, Object, error_of
from gpugate_vastai.settings import VastConfig

LIST_PAGE = 25
MOST_PAGES = 20
LARGEST_ANSWER = 8 * 1024 * 1024


@frozen
class Call:
    """One of the API's calls.

    Attributes:
        interval_s: the endpoint's minimum interval (docs/providers.md#vastai-api).
        patience_s: how long to wait after a 429 that does not say.
        starts: it may begin something that costs money, so a lost answer is `Ambiguous`.
    """

    name: str
    method: str
    interval_s: float
    patience_s: float
    starts: bool = False


SHOW = Call("show", "GET", 2.0, 2.0)
LIST = Call("list", "GET", 2.0, 2.0)  # not documented: taken as that of one instance
STOP = Call("stop", "PUT", 1.0, 1.0)
START = Call("start", "PUT", 1.0, 1.0, starts=True)
DESTROY = Call("destroy", "DELETE", 3.0, 3.0)
SEARCH = Call("search", "POST", 6.0, 6.0)
CHARGES = Call("charges", "GET", 1.0, 1.0)
CREATE = Call("create", "PUT", 4.5, 12.0, starts=True)  # too early costs 12 s


@frozen
class Created:
    """A create's answer: the new instance, and what went wrong although there is one."""

    instance_id: int | None
    error: ProviderError | None = None


class OfferTaken(Transient):
    """The offer is gone; another one may do."""


class _Broken(aiohttp.ClientError):
    """The connection broke; a class of its own, because aiohttp repeats a PUT that broke by itself."""


async def _one_try(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a PUT or DELETE twice: the second create would be a second bill."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken(type(error).__name__) from error


class VastApi:
    """Vast.ai's API under one key."""

    def __init__(self, config: VastConfig, session: aiohttp.ClientSession) -> None:
        self._config = config
        self._session = session
        self._base = config.api_base.rstrip("/")
        self._list_url = re.sub(r"/v0$", "/v1", self._base) + "/instances/"
        self._free_at: dict[str, float] = {}  # when a paced call may be sent again

    async def show(self, instance_id: int) -> Object | None:
        """One instance, or None if there is none (any more)."""
        self._pace(SHOW)
        try:
            found = await self._ask(SHOW, f"{self._base}/instances/{instance_id}/", query={"owner": "me"})
        except NotFound:
            return None
        if "instances" not in found:
            raise Transient("Vast.ai answered without an instance")
        row = found["instances"]
        if row is None or row == []:
            return None
        if isinstance(row, list):  # the list's shape, as some versions of the API answer
            row = row[0]
        if not isinstance(row, dict) or str(row.get("id", instance_id)) != str(instance_id):
            raise Transient("Vast.ai answered with another instance")
        return row

    async def set_state(self, instance_id: int, state: str) -> None:
        """Ask for "running" or "stopped"."""
        call = START if state == "running" else STOP
        await self._ask(call, f"{self._base}/instances/{instance_id}/", {"state": state})

    async def list_all(self) -> Sequence[Object]:
        """Every instance of the account, page by page."""
        return await self._pages(LIST, self._list_url, "instances", {"limit": str(LIST_PAGE)})

    async def charges(self, filters: str) -> Sequence[Object]:
        """What the account was charged, page by page, if it comes in pages (not documented)."""
        return await self._pages(CHARGES, f"{self._base}/charges/", "results", {"select_filters": filters})

    async def _pages(self, call: Call, url: str, key: str, query: dict[str, str]) -> Sequence[Object]:
        """All rows, or an error: absence is concluded from them."""
        rows: list[Object] = []
        self._pace(call)
        for _ in range(MOST_PAGES):
            page = await self._ask(call, url, query=query)
            if not isinstance(page.get(key), list):
                raise Transient(f"Vast.ai answered without a list of {key}")
            rows += [row for row in page[key] if isinstance(row, dict)]
            token = page.get("next_token")
            if not token:
                return rows
            query = {**query, "after_token": str(token)}
        raise Transient(f"Vast.ai's list of {key} has more than {MOST_PAGES} pages")

    async def search(self, wanted: Object) -> Sequence[Object]:
        """Offers that fit, best first."""
        self._pace(SEARCH)
        found = await self._ask(SEARCH, f"{self._base}/bundles/", wanted)
        offers = found.get("offers")
        if not isinstance(offers, list):
            raise Transient("Vast.ai answered without a list of offers")
        return [offer for offer in offers if isinstance(offer, dict)]

    async def create(self, offer_id: int, wanted: Object) -> Created:
        """Rent this offer. A failure that names a new instance all the same is returned, not raised."""
        self._pace(CREATE)
        answer = await self._send(CREATE, f"{self._base}/asks/{offer_id}/", wanted)
        number = (answer.fields or {}).get("new_contract")
        made = number if isinstance(number, int) and not isinstance(number, bool) else None
        error = self._error_of(CREATE, answer)
        if answer.code == "no_such_ask" or answer.status == 410 or isinstance(error, NoCapacity | NotFound):
            error = OfferTaken("Vast.ai has let this offer to somebody else")
        elif error is not None and made is None and (answer.status >= 500 or answer.fields is None):
            error = _doubted(answer, error)
        if error is not None and made is None:
            raise error
        if made is None:
            raise Ambiguous("Vast.ai says that it has rented an instance, not which")
        return Created(made, error)

    async def destroy(self, instance_id: int) -> None:
        """Destroy an instance; one that is gone is fine."""
        try:
            await self._ask(DESTROY, f"{self._base}/instances/{instance_id}/", {})
        except NotFound:
            return

    # --- one request ----------------------------------------------------------------------------

    def _pace(self, call: Call) -> None:
        """Refuse here what Vast.ai would refuse, and count, there. Starts and stops are never held back."""
        now = asyncio.get_running_loop().time()
        if (wait_s := self._free_at.get(call.name, now) - now) > 0:
            raise RateLimited(f"Vast.ai takes one {call.name} in {call.interval_s:g} s", wait_s)
        self._free_at[call.name] = now + call.interval_s

    async def _ask(
        self, call: Call, url: str, body: Object | None = None, query: dict[str, str] | None = None
    ) -> Object:
        answer = await self._send(call, url, body, query)
        error = self._error_of(call, answer)
        if isinstance(error, NotFound) and call in (
            LIST,
            SEARCH,
            CHARGES,
        ):  # of no instance: it must prove nothing
            error = Misconfigured("Vast.ai does not know this path: is providers.vastai.api_base right?")
        if error is not None:
            raise error
        assert answer.fields is not None
        return answer.fields

    def _error_of(self, call: Call, answer: Answer) -> ProviderError | None:
        error = error_of(answer, call.patience_s)
        if error is not None:  # an API may quote what it was sent
            for secret in self._config.secrets:
                error.message = error.message.replace(secret, "…")
            error.args = (error.message,)
        return error

    async def _send(
        self, call: Call, url: str, body: Object | None = None, query: dict[str, str] | None = None
    ) -> Answer:
        try:
            async with self._request(call, url, body, query) as response:
                content = await _all_of(response)
                return Answer.read(response.status, content, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _network_error(call, error) from None

    def _request(self, call: Call, url: str, body: Object | None, query: dict[str, str] | None) -> Any:
        headers = {"Authorization": f"Bearer {self._config.api_key}", "Accept": "application/json"}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        return self._session.request(
            call.method,
            url,
            data=content,
            params=query,
            headers=headers,
            allow_redirects=False,  # a PUT must never become a GET, nor the key go elsewhere
            timeout=aiohttp.ClientTimeout(total=self._config.timeout),
            middlewares=(_one_try,),
        )


async def _all_of(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > LARGEST_ANSWER:
            raise ValueError("too large")
    return bytes(content)


def _doubted(answer: Answer, error: ProviderError) -> ProviderError:
    """A create that broke at the server, or whose answer cannot be read, may have rented something."""
    if answer.status >= 500 or 200 <= answer.status < 300:
        return Ambiguous(f"it is not known whether Vast.ai has rented an instance: {error.message}")
    return error


def _network_error(call: Call, error: Exception) -> ProviderError:
    """What a broken exchange stands for. The libraries' own words stay out: they may quote the request."""
    if isinstance(error, aiohttp.InvalidURL):
        return Misconfigured("providers.vastai.api_base is no address")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Blocked("the certificate at providers.vastai.api_base is not trusted")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Transient("Vast.ai's name cannot be resolved")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Transient("Vast.ai cannot be reached")
    words = "did not answer in time" if isinstance(error, TimeoutError) else "broke the connection"
    if call.starts:
        return Ambiguous(f"Vast.ai {words}: the start may have been accepted")
    return Transient(f"Vast.ai {words}")
