"""gpugate-wol: the provider contract, and what is special about a PC at home."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attrs import define, evolve, field
from gpugate_testing import ProviderContract
from gpugate_testing.fault_sessions import AGENT
from gpugate_wol import WakeOnLan, WolConfig

from gpugate import AuthFailed, Misconfigured, Phase, Transient

MAC = "9c:6b:00:12:34:56"
TOKEN = "the-pc-knows-this-one"


class HomePc(asyncio.DatagramProtocol):
    """A PC that hears magic packets, boots, has an Ollama, and can be told to shut down."""

    boot_s = 0.05
    stop_s = 0.05

    def __init__(self) -> None:
        self.awake = self.serving = self.network_down = False
        self.port = self.wake_port = self.packets = self.stops = 0

    def datagram_received(self, data: bytes, _: Any) -> None:
        self.packets += 1
        if data == b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16 and not self.awake:
            asyncio.get_running_loop().call_later(self.boot_s, self.turn, True)

    def turn(self, on: bool) -> None:
        self.awake = self.serving = on

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.12.6"})

    async def power_off(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        self.stops += 1
        asyncio.get_running_loop().call_later(self.stop_s, self.turn, False)
        return web.Response(status=202)

    def connect(self, address: Any) -> socket.socket:
        """A socket to this PC fails as one to a PC that is off; 127.0.0.2 is the router."""
        host = address[4][0]
        if self.network_down:
            raise OSError(errno.ENETUNREACH, "network is unreachable")
        if host != "127.0.0.2" and not self.awake:
            raise OSError(errno.EHOSTUNREACH, "no route to host")
        if host != "127.0.0.2" and not self.serving:
            raise OSError(errno.ECONNREFUSED, "connection refused")
        return socket.socket(address[0], address[1])


@pytest.fixture
async def pc() -> AsyncIterator[HomePc]:
    """The PC, switched off."""
    pc = HomePc()
    app = web.Application()
    app.router.add_get("/api/version", pc.version)
    app.router.add_post("/poweroff", pc.power_off)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()
    pc.port = runner.addresses[0][1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: pc, local_addr=("127.0.0.1", 0))
    pc.wake_port = transport.get_extra_info("sockname")[1]
    yield pc
    transport.close()
    await runner.cleanup()


@pytest.fixture
def config(pc: HomePc) -> WolConfig:
    """Its section."""
    return WolConfig(
        mac=MAC,
        url=f"http://127.0.0.1:{pc.port}",
        broadcast="127.0.0.1",
        wake_port=pc.wake_port,
        stop_url=f"http://127.0.0.1:{pc.port}/poweroff",
        stop_token=TOKEN,
        boot=0.3,
        shutdown=0.3,
        timeout=0.2,
    )


@pytest.fixture
async def session(pc: HomePc) -> AsyncIterator[aiohttp.ClientSession]:
    """A session in the PC's network."""
    connector = aiohttp.TCPConnector(socket_factory=pc.connect, force_close=True)
    async with aiohttp.ClientSession(connector=connector, headers=AGENT) as session:
        yield session


@pytest.fixture
def provider(config: WolConfig, session: aiohttp.ClientSession) -> WakeOnLan:
    """A provider of that PC."""
    return WakeOnLan(config, session)


class TestContract(ProviderContract):
    """Everything that gpugate relies on."""

    provider_class = WakeOnLan
    second = 0.02

    @pytest.fixture
    def config(self, config: WolConfig) -> WolConfig:
        return config

    @pytest.fixture
    async def session(self, session: aiohttp.ClientSession) -> aiohttp.ClientSession:
        return session

    @pytest.fixture
    def changes(self, pc: HomePc) -> Callable[[], int]:
        return lambda: pc.packets + pc.stops

    @pytest.fixture
    def billing(self, pc: HomePc) -> Callable[[], int]:
        return lambda: int(pc.awake)


async def test_a_pc_that_is_on(provider: WakeOnLan, pc: HomePc) -> None:
    """It gets no packet, and its Ollama is where the section says."""
    pc.turn(True)
    report = await provider.start()

    assert Phase.RUNNING is report.phase
    assert provider.config.url == report.endpoints["ollama"].url
    assert pc.packets == 0


async def test_a_pc_whose_ollama_is_not_up(provider: WakeOnLan, pc: HomePc) -> None:
    """It starts; a stop shuts it down all the same, if it can be reached."""
    pc.awake = True

    assert Phase.STARTING is (await provider.inspect()).phase
    with pytest.raises(Transient, match="stop_url does not answer"):
        await provider.stop()


async def test_a_network_that_is_down(provider: WakeOnLan, pc: HomePc) -> None:
    """The PC's silence means nothing then."""
    pc.network_down = True

    with pytest.raises(Transient, match="network is down"):
        await provider.inspect()


@pytest.mark.parametrize(("router", "works"), [("127.0.0.2", True), ("127.0.0.1", False)])
async def test_a_witness(
    config: WolConfig, session: aiohttp.ClientSession, pc: HomePc, router: str, works: bool
) -> None:
    """Silence is believed when something that is always on can still be heard."""
    provider = WakeOnLan(evolve(config, witness=f"http://{router}:{pc.port}/"), session)

    if works:
        assert Phase.STOPPED is (await provider.inspect()).phase
    else:
        with pytest.raises(Transient, match="witness"):
            await provider.inspect()


async def test_a_wrong_token(config: WolConfig, session: aiohttp.ClientSession, pc: HomePc) -> None:
    """The message names the key, not the token."""
    pc.turn(True)
    provider = WakeOnLan(evolve(config, stop_token="wrong-one"), session)

    with pytest.raises(AuthFailed, match=r"providers\.wol\.stop_token") as raised:
        await provider.stop()

    assert "wrong-one" not in str(raised.value)


@define
class Command:
    """A stop_command of Python."""

    code: str
    words: list[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.words = [sys.executable, "-c", self.code]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command("pass").words, None),
        (Command("raise SystemExit(3)").words, Transient),
        (Command("import time; time.sleep(60)").words, Transient),
        (["/nonexistent/ssh", "pc"], Misconfigured),
    ],
)
async def test_a_stop_command(
    config: WolConfig,
    session: aiohttp.ClientSession,
    pc: HomePc,
    command: list[str],
    error: type[Exception] | None,
) -> None:
    """Its exit status is what counts, and it does not outlive its time."""
    pc.turn(True)
    provider = WakeOnLan(
        evolve(config, stop_url="", stop_token="", stop_command=command, timeout=1.0), session
    )

    if error is None:
        assert Phase.STOPPING is (await provider.stop()).phase
    else:
        with pytest.raises(error):
            await provider.stop()


async def test_a_shutdown_that_does_not_happen(
    config: WolConfig, session: aiohttp.ClientSession, pc: HomePc
) -> None:
    """After its time a PC that is still on counts as running, and gpugate goes on stopping it."""
    pc.turn(True)
    pc.stop_s = 60.0
    provider = WakeOnLan(evolve(config, shutdown=1.0), session)
    await provider.stop()

    assert Phase.STOPPING is (await provider.inspect()).phase
    await asyncio.sleep(1.1)
    assert Phase.RUNNING is (await provider.inspect()).phase


async def test_its_price(config: WolConfig, session: aiohttp.ClientSession) -> None:
    """Watts and the price of a kilowatt-hour make an hourly rate."""
    provider = WakeOnLan(evolve(config, watts=450, price_per_kwh=0.32), session)
    price = (await provider.inspect()).price

    assert price is not None
    assert price.running_per_hour == Decimal("0.144")


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": "9c6b00123456"},
        {"url": ""},
        {"wake_port": 0},
        {"stop_url": ""},
        {"stop_command": ["ssh", "pc"]},
    ],
)
def test_a_wrong_section(config: WolConfig, wrong: dict[str, Any]) -> None:
    """It is refused before anything runs."""
    with pytest.raises(ValueError, match=r"must|missing|needed"):
        evolve(config, **wrong)
