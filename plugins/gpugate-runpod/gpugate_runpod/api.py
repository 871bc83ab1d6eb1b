"""REST v2 of RunPod: one method per call, one try each, and its errors in gpugate's words.

It must not know what a call is for: no mode, no policy, no memory. The API key leaves it in one header only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import aiohttp
import orjson

from gpugate import (
    Ambiguous,
    AuthFailed,
    Blocked,
    Charge,
    Conflict,
    Misconfigured,
    NoCapacity,
    NoFunds,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from gpugate_runpod.billing import charges_of, query_of
from gpugate_runpod.pods import Shown, Stock
from gpugate_runpod.settings import RunPodConfig
from gpugate_runpod.spot import LOWEST_BIDS, RENT, bids_input, lowest_bids, rent_input

LARGEST_ANSWER = 8 * 1024 * 1024
MOST_PAGES = 50
LONGEST_WORDS = 200
V1_RETIRED = "REST v1 is retired: providers.runpod.api_base must be https://api.runpod.io/v2"
_NO_CAPACITY = re.compile(
    r"not enough free (?:gpus?|memory)|no longer any instances available|"
    r"not have the resources to deploy|migrate your pod|no (?:gpus?|instances) available|out of capacity",
    re.IGNORECASE,
)
_BID = re.compile(r"\bbid\b|spot price", re.IGNORECASE)
_LOCKED = re.compile(r"\block(?:ed)?\b", re.IGNORECASE)
_WINDOW = re.compile(r"r=0;\s*t=(\d+)")


class Api:
    """The calls. Every one raises `ProviderError`s only.

    `lost` is what a call raises whose outcome is not known, because its answer never came or is no answer;
    `broken` what a 5xx becomes.
    """

    def __init__(self, config: RunPodConfig, session: aiohttp.ClientSession) -> None:
        self._config = config
        self._session = session
        self._base = config.api_base.rstrip("/")
        self._limit = aiohttp.ClientTimeout(total=config.timeout)

    async def get(self, pod_id: str) -> Shown:
        """`GET /pods/{id}`. NotFound: there is no such pod."""
        return self._pod(await self._call("GET", f"/pods/{pod_id}"), pod_id)

    async def act(self, pod_id: str, action: str, *, lost: type[ProviderError] = Transient) -> Shown:
        """`POST /pods/{id}/action`. Conflict: not valid in the pod's state, or the pod is locked."""
        answer = await self._call("POST", f"/pods/{pod_id}/action", {"action": action}, lost=lost)
        return self._pod(answer, pod_id, lost)

    async def list_pods(self) -> list[Shown]:
        """`GET /pods`, all pages; one that is not whole is an error, since absence is concluded from it."""
        shown: list[Shown] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            answer = await self._call("GET", "/pods", query={"cursor": cursor} if cursor else None)
            pods = answer.get("pods") if isinstance(answer, dict) else None
            if not isinstance(pods, list):
                raise Transient("RunPod answered something that is no list of pods")
            shown += [self._pod(pod) for pod in pods]
            pages = answer.get("pagination") or {}
            if not pages.get("hasNextPage"):
                return shown
            cursor = str(pages.get("nextCursor") or "")
            if not cursor:
                break
        raise Transient("RunPod's list of pods has no end")

    async def create(self, body: Mapping[str, Any]) -> Shown:
        """`POST /pods`. Ambiguous: a pod may have been made."""
        answer = await self._call("POST", "/pods", body, lost=Ambiguous, broken=Ambiguous)
        return self._pod(answer, lost=Ambiguous)

    async def delete(self, pod_id: str) -> None:
        """`DELETE /pods/{id}`. NotFound: it is gone already."""
        await self._call("DELETE", f"/pods/{pod_id}")

    async def gpus(self, count: int, cloud: str) -> list[Stock]:
        """`GET /catalog/gpus`: what there is, and at what price."""
        query = {"include": "AVAILABILITY", "product": "POD", "count": str(count), "cloud": cloud}
        answer = await self._call("GET", "/catalog/gpus", query=query)
        lines = answer.get("gpus") if isinstance(answer, dict) else None
        if not isinstance(lines, list):
            raise Transient("RunPod answered something that is no catalogue of GPUs")
        return [Stock.of(line, cloud) for line in lines if isinstance(line, dict)]

    async def lowest_bids(self) -> dict[str, Decimal]:
        """The least that is accepted for a spot pod, per GPU and hour, by GPU id."""
        return lowest_bids(await self._graphql(LOWEST_BIDS, bids_input(self._config), Transient))

    async def rent(self, body: Mapping[str, Any], bid: Decimal) -> Shown:
        """Create a spot pod of the body of a `create`. Ambiguous: a pod may have been made."""
        data = await self._graphql(RENT, rent_input(body, bid, self._config), Ambiguous)
        made = data.get("podRentInterruptable")
        if made is None:
            raise NoCapacity("RunPod has no spot pod for this bid")
        try:
            return await self.get(str(made.get("id")))
        except ProviderError as error:  # it is there by now, and the list will show it
            raise Ambiguous(f"a spot pod was made, and then: {error.message}") from error

    async def _graphql(self, query: str, variables: Mapping[str, Any], lost: type[ProviderError]) -> Any:
        """The `data` of an answer; GraphQL tells its errors with a 200."""
        body = {"query": query, "variables": variables}
        url = self._config.graphql_base
        answer = await self._call("POST", "", body, lost=lost, broken=lost, base=url)
        if not isinstance(answer, dict):
            raise lost("RunPod answered something that is no GraphQL")
        if errors := answer.get("errors"):
            words = self._clean(" ".join(str(_mapping_of(error).get("message")) for error in errors))
            full = _NO_CAPACITY.search(words) or _BID.search(words)
            raise (NoCapacity if full else Misconfigured)(f"RunPod: {words}")
        return _mapping_of(answer.get("data"))

    async def bill(self, since: datetime, until: datetime, pod_id: str | None) -> list[Charge]:
        """`GET /billing/pods`, of one pod or of all; RunPod widens the span to whole hours or days."""
        return charges_of(await self._call("GET", "/billing/pods", query=query_of(since, until, pod_id)))

    # --- one call -----------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        lost: type[ProviderError] = Transient,
        broken: type[ProviderError] = Transient,
        base: str | None = None,
    ) -> Any:
        """The decoded answer to one request; None where it has no body by design (204)."""
        headers = {"Authorization": f"Bearer {self._config.api_key}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                (self._base if base is None else base) + path,
                params=query,
                data=orjson.dumps(body) if body is not None else None,
                headers=headers,
                allow_redirects=False,
                timeout=self._limit,
            ) as answer:
                status, given = answer.status, answer.headers
                text = await _read(answer)
        except aiohttp.InvalidURL as error:
            raise Misconfigured("providers.runpod.api_base is no URL") from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Transient(f"RunPod cannot be reached ({type(error).__name__})") from error
        except TimeoutError as error:
            raise lost(f"RunPod did not answer within {self._config.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise lost(f"the connection to RunPod broke ({type(error).__name__})") from error
        if status == 204:
            return None
        if 200 <= status < 300:
            return _decoded(text, lost)
        raise self._error(status, given, text, broken)

    def _pod(self, answer: object, pod_id: str | None = None, lost: type[ProviderError] = Transient) -> Shown:
        shown = Shown.of(answer)
        if shown is None or (pod_id is not None and shown.id != pod_id):
            raise lost("RunPod answered something that is not the pod")
        return shown

    # --- errors (docs/providers.md#runpod-operations) --------------------------------------------------

    def _error(
        self, status: int, headers: Mapping[str, str], text: bytes, broken: type[ProviderError]
    ) -> ProviderError:
        problem = _problem(text)
        if problem is None:
            return self._no_answer_of_the_api(status, text, broken)
        said = self._clean(_words(problem)) or f"RunPod answered {status}"
        match status:
            case 401:
                return AuthFailed(f"RunPod does not accept providers.runpod.api_key: {said}")
            case 402:
                return NoFunds(f"RunPod: {said} Add credit to the account; a start needs an hour's worth")
            case 403:
                return AuthFailed(f"providers.runpod.api_key may not do this: {said}; it needs write access")
            case 404 | 410:
                return NotFound(f"RunPod: {said}")
            case 409 | 423:
                return Conflict(f"RunPod: {said}")
            case 429:
                return RateLimited(f"RunPod: {said}", _retry_after(headers))
            case 400 if _NO_CAPACITY.search(said):
                return NoCapacity(f"RunPod: {said}")
            case 400 if _LOCKED.search(said):
                return Conflict(f"RunPod: {said}")
            case _ if status >= 500:
                # v1 gave a full host a 500 with the same words, and v2 may yet
                kind = NoCapacity if _NO_CAPACITY.search(said) else broken
                return kind(f"RunPod answered {status}: {said}")
            case _:
                return Misconfigured(f"RunPod refuses the request ({status}): {said}")

    def _no_answer_of_the_api(self, status: int, text: bytes, broken: type[ProviderError]) -> ProviderError:
        """An edge, a CDN or a wrong address answered: no JSON, so not RunPod's API."""
        if status >= 500:
            return broken(f"RunPod's edge answered {status}")
        if status == 403:
            rule = "rule 1010, " if b"1010" in text else ""
            return Blocked(f"the CDN before RunPod refuses this client ({rule}403): not a matter of the key")
        if status == 429:
            return RateLimited("RunPod's edge answered 429")
        if status == 401:
            return AuthFailed("RunPod does not accept providers.runpod.api_key")
        if "rest.runpod.io" in self._base or status == 410:
            return Misconfigured(V1_RETIRED)
        told = "a redirect" if 300 <= status < 400 else f"{status} and no JSON"
        return Misconfigured(f"providers.runpod.api_base answers {told}: is it https://api.runpod.io/v2?")

    def _clean(self, words: str) -> str:
        """One short line without a secret; RunPod may quote what it was sent."""
        for secret in self._config.secrets:
            words = words.replace(secret, "***")
        words = " ".join(words.split())
        return words if len(words) <= LONGEST_WORDS else words[:LONGEST_WORDS] + "..."


def _mapping_of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body; ClientPayloadError if it breaks off or has no end."""
    pieces = bytearray()
    async for piece in answer.content.iter_any():
        pieces += piece
        if len(pieces) > LARGEST_ANSWER:
            raise aiohttp.ClientPayloadError("too large")
    return bytes(pieces)


def _decoded(text: bytes, lost: type[ProviderError]) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise lost("RunPod answered something that is no JSON") from error


def _problem(text: bytes) -> dict[str, Any] | None:
    try:
        problem = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return problem if isinstance(problem, dict) else None


def _words(problem: Mapping[str, Any]) -> str:
    """What RunPod says: v2's `detail` and `errors`, or what older parts of it have instead."""
    detail = next((problem[key] for key in ("detail", "message", "error", "title") if problem.get(key)), "")
    errors = problem.get("errors")
    more = [str(error) for error in errors] if isinstance(errors, list) else []
    return " ".join([str(detail), *more[:3]])


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `Retry-After`, else the end of the window that is used up (`RateLimit`)."""
    given = headers.get("Retry-After", "").strip()
    if given.isascii() and given.isdigit():
        return float(given[:9])
    used_up = _WINDOW.search(headers.get("RateLimit", ""))
    return float(used_up[1][:9]) if used_up else None
