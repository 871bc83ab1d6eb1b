"""The dashboard as people see it, in a headless Chromium, before `gpugate demo` as a process of its own.

With `GPUGATE_SCREENSHOTS=docs/images` the pictures of docs/dashboard.md are made anew.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from attrs import define
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from gpugate.billing.model import Session
from gpugate.billing.sqlite_ledger import SqliteLedger
from tests.e2e.prefix_proxy import serve_below_prefix
from tests.e2e.support import SECRET, token

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
SESSIONS = 10_000

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
)


@define
class Demo:
    """`gpugate demo` on a port and state folder that outlast its process."""

    port: int
    folder: Path
    process: subprocess.Popen[str] | None = None
    token: str = ""

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = (sys.executable, "-m", "gpugate", "demo", "--port", str(self.port), "--cold-start", "2s")
        env = {**os.environ, "HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder)}
        env["GPUGATE_PROVIDERS__DEMO__TOKENS_PER_SECOND"] = "5"  # so that an answer is seen running
        with open(self.folder / "log", "w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().startswith("eyJ"):
                self.token = line.strip()
            if "Ctrl-C" in line:
                break
        while '"listening"' not in (self.folder / "log").read_text():
            assert self.process.poll() is None, (self.folder / "log").read_text()

    def end(self) -> None:
        """Stop it, and its pod."""
        if self.process is not None:
            self.process.terminate()
            self.process.communicate(timeout=20)

    def call(self, method: str, path: str, body: object = None) -> bytes:
        """Ask the gateway; the answer is read to its end."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode() if body else None,
            {"Authorization": f"Bearer {self.token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def chat(self) -> None:
        """Ask something that wakes the pod."""
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        with suppress(OSError, http.client.IncompleteRead):  # it may be cut off
            self.call("POST", "/api/chat", {"model": "llama3.2:3b", "messages": messages})

    def turn_off(self) -> None:
        """Have the pod stopped."""
        self.call("POST", "/api/v1/gpu/stop?force=true")
        while b'"STOPPED"' not in self.call("GET", "/api/v1/gpu/status"):
            time.sleep(0.05)


class TwoPods(Demo):
    """A gateway with two simulated pods: the demo has only one."""

    def start(self) -> None:
        """Start it, and wait until it listens."""
        env = {**os.environ, "HOME": str(self.folder), "GPUGATE_AUTH__SECRET": SECRET}
        env |= {"GPUGATE_SERVER__PORT": f"{self.port}", "GPUGATE_STATE__DIR": str(self.folder)}
        env |= {f"GPUGATE_PODS__{pod}__PROVIDER": "demo" for pod in ("HOME", "CODE")}
        env["GPUGATE_PROVIDERS__DEMO__COLD_START"] = "2s"
        with open(self.folder / "log", "w") as log:
            command = (sys.executable, "-m", "gpugate", "serve")
            self.process = subprocess.Popen(command, cwd=self.folder, env=env, stderr=log, text=True)
        self.token = token()
        while '"listening"' not in (self.folder / "log").read_text():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)


@define
class Screen:
    """The page in the browser."""

    driver: webdriver.Chrome
    demo: Demo

    def open(self, url: str | None = None) -> None:
        """Load the page as a tab that was never there before."""
        self.driver.get(url or f"http://127.0.0.1:{self.demo.port}/dashboard")
        self.driver.execute_script("sessionStorage.clear()")
        self.driver.refresh()
        self.until(lambda: self.shown("token"))

    def leave(self) -> None:
        """Close the page; the browser complains of the streams that this ends."""
        self.driver.get("about:blank")
        self.errors()

    def log_in(self, token: str | None = None) -> None:
        """As a person does: by the keyboard."""
        self.find("token").send_keys(self.demo.token if token is None else token, Keys.ENTER)

    def find(self, name: str) -> WebElement:
        """The element of this id."""
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """What stands in an element."""
        return self.find(name).text

    def shown(self, name: str) -> bool:
        """Whether an element can be seen."""
        return self.find(name).is_displayed()

    def until(self, true: Callable[[], object], seconds: float = 30) -> None:
        """Wait until it is so."""
        WebDriverWait(self.driver, seconds, poll_frequency=0.1).until(lambda _: true())

    def until_status(self, word: str) -> None:
        """Wait for a headline."""
        self.until(lambda: word == self.text("pod-status"))

    def photograph(self, name: str) -> None:
        """Keep a picture where the documentation has it."""
        if folder := os.environ.get("GPUGATE_SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def errors(self) -> list[str]:
        """What the browser complained of: the policy, a script, a file that is missing."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


async def fill_ledger(path: Path) -> None:
    """Write 10,000 sessions of the last 30 days; the copies differ in id, time and cold start."""
    began = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=29)
    ledger = await SqliteLedger.open(path)
    await ledger.put(
        Session(
            id="00000",
            provider="runpod",
            pod_id="abc123",
            gpu="RTX 4090",
            asked_at=began,
            started_at=began,
            ready_at=began + timedelta(seconds=74),
            ended_at=began + timedelta(seconds=240),
            hourly_rate=Decimal("0.44"),
            rate_source="provider",
            started_by="alice",
            start_reason="request",
            end_reason="idle",
            cost=Decimal("0.0293333"),
        )
    )
    await ledger.aclose()
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    first = dict(database.execute("SELECT * FROM sessions").fetchone())
    rows = []
    for number in range(1, SESSIONS):
        at = began + timedelta(seconds=250 * number)
        times = {
            "asked_at": at,
            "started_at": at,
            "ready_at": at + timedelta(seconds=74 + number * 7919 % 90),
            "ended_at": at + timedelta(seconds=240),
        }
        texts = {name: moment.isoformat(timespec="microseconds") for name, moment in times.items()}
        rows.append(tuple({**first, **texts, "id": f"{number:05}"}.values()))
    with database:
        database.executemany(f"INSERT INTO sessions VALUES ({','.join('?' * len(first))})", rows)
    database.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One browser for all tests of this file."""
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 1400)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for all tests of this file; 10,000 sessions stand in its ledger."""
    folder = tmp_path_factory.mktemp("demo")
    ledger = folder / "gpugate" / "demo" / "simulated" / "ledger.sqlite3"
    ledger.parent.mkdir(parents=True)
    asyncio.run(fill_ledger(ledger))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        demo = Demo(probe.getsockname()[1], folder)
    demo.start()
    yield demo
    demo.end()


@pytest.fixture
def screen(driver: webdriver.Chrome, demo: Demo) -> Iterator[Screen]:
    """The page before anything is typed, the pod off. At its end the browser has complained of nothing."""
    demo.turn_off()
    screen = Screen(driver, demo)
    screen.open()
    screen.errors()
    yield screen
    assert [] == screen.errors()
    screen.leave()


def test_a_wrong_token(screen: Screen) -> None:
    """It says why, in the gateway's words, and stays where it is."""
    screen.log_in("not.a.token")
    screen.until(lambda: "token" in screen.text("login-error"))

    assert not screen.shown("dashboard")
    assert screen.driver.execute_script("return sessionStorage.length") == 0
    assert all("401" in error for error in screen.errors())  # the browser reports every 401
    screen.photograph("dashboard-login")


def test_a_cold_start_is_seen_live(screen: Screen) -> None:
    """Off, starting, warming up, ready, and the request that caused it; then a stop that asks first."""
    screen.log_in()
    screen.until_status("Off")
    chat = threading.Thread(target=screen.demo.chat)
    chat.start()
    screen.until_status("Starting")
    screen.until(lambda: "waiting" in screen.text("requests"))
    screen.photograph("dashboard-starting")
    screen.until_status("Ready")
    assert "Starting → Warming up" in screen.text("events")
    screen.until(lambda: "being answered" in screen.text("requests"))

    screen.find("stop").click()
    screen.until(lambda: screen.shown("stop-dialog"))
    assert "1 request waiting or being answered will be cut off." == screen.text("stop-text")
    assert "stop-cancel" == screen.driver.switch_to.active_element.get_attribute("id")
    screen.photograph("dashboard-stop")
    screen.find("stop-cancel").click()
    assert "Ready" == screen.text("pod-status")
    screen.find("stop").click()
    screen.find("stop-confirm").click()
    screen.until_status("Off")
    chat.join()
    events = screen.text("events")
    assert "Off → Starting" in events
    assert "A session began at demo, for a request" in events


def test_by_keyboard_on_a_phone_in_the_dark(screen: Screen) -> None:
    """No mouse: Tab goes through what can be done, in order. Nothing is wider than the screen."""
    screen.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    screen.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        screen.log_in()
        screen.until_status("Off")
        screen.until(lambda: "Live" == screen.text("connection"))
        size = "return [document.scrollingElement.scrollWidth, innerWidth]"
        width, room = screen.driver.execute_script(size)
        assert width <= room
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert "rgb(16, 21, 27)" == screen.driver.execute_script(colour)

        screen.driver.execute_script("document.activeElement.blur()")
        reached = []
        for _ in range(3):
            webdriver.ActionChains(screen.driver).send_keys(Keys.TAB).perform()
            reached.append(screen.driver.switch_to.active_element.get_attribute("id"))
        assert "start" in reached
        screen.find("start").send_keys(Keys.ENTER)
        screen.until_status("Ready")
        screen.photograph("dashboard-phone")
    finally:
        screen.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        screen.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_control_has_a_name(screen: Screen) -> None:
    """As a screen reader says it; the live regions are regions."""
    screen.log_in()
    screen.until_status("Off")
    screen.until(lambda: screen.find("sessions").text)
    every = "button, input, [role=img], [role=region], [role=log]"
    shown = [one for one in screen.driver.find_elements(By.CSS_SELECTOR, every) if one.is_displayed()]

    assert {"log-out", "start", "stop", "days-chart", "sessions"} <= {
        one.get_attribute("id") for one in shown
    }
    for control in shown:
        assert control.accessible_name, control.get_attribute("outerHTML")


def test_the_gateway_is_restarted_under_it(screen: Screen) -> None:
    """The page says that the connection is lost, and goes on by itself."""
    screen.log_in()
    screen.until(lambda: "Live" == screen.text("connection"))
    screen.demo.end()
    screen.until(lambda: "Connection lost, trying again" == screen.text("connection"))
    screen.demo.start()
    screen.until(lambda: "Live" == screen.text("connection"))
    screen.find("start").click()
    screen.until_status("Ready")
    screen.errors()  # the browser reports each refused connection


def test_below_a_path_prefix(screen: Screen) -> None:
    """A reverse proxy that serves it as /gpu/dashboard needs no setting."""
    with serve_below_prefix("/gpu", screen.demo.port) as port:
        screen.open(f"http://127.0.0.1:{port}/gpu/dashboard/")
        screen.log_in()
        screen.until_status("Off")
        screen.until(lambda: "Live" == screen.text("connection"))
        screen.find("start").click()
        screen.until_status("Ready")
        assert [] == screen.errors()
        screen.leave()


def test_ten_thousand_sessions(screen: Screen) -> None:
    """The newest ones are listed, all count, and each has a receipt."""
    screen.log_in()
    screen.until(lambda: "The last 30 days: $293.33." in screen.text("days-summary"))
    rows = screen.driver.find_elements(By.CSS_SELECTOR, "#sessions tbody tr")
    assert 50 == len(rows)
    assert "within" in screen.text("starts-summary")
    of_runpod = next(row for row in rows if "runpod" in row.text)
    of_runpod.find_element(By.TAG_NAME, "button").click()
    screen.until(lambda: "runpod" in screen.text("receipt"))
    screen.photograph("dashboard-receipt")
    screen.find("receipt-close").click()
    screen.find("start").click()
    screen.until_status("Ready")
    screen.photograph("dashboard")


def test_several_pods(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """Each has its row, its state and its buttons; events name it, and a stop asks about this one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    demo = TwoPods(port, tmp_path)
    demo.start()
    screen = Screen(driver, demo)
    try:
        screen.open()
        screen.log_in()
        screen.until(lambda: "Off" in screen.text("pods"))
        assert not screen.shown("pod-card")
        button = driver.find_element(By.CSS_SELECTOR, '[data-id="Start code"]')
        button.click()
        screen.until(lambda: "Ready" in screen.text("pods"))
        assert "code: Off → Starting" in screen.text("events")
        rows = {row.text.split()[0]: row.text for row in screen.find("pods").find_elements(By.TAG_NAME, "tr")}
        assert "Off" in rows["home"]
        assert "Ready" in rows["code"]
        driver.find_element(By.CSS_SELECTOR, '[data-id="Stop code"]').click()
        assert "Stop the pod code?" == screen.text("stop-title")
        screen.find("stop-confirm").click()
        screen.until(lambda: "Ready" not in screen.text("pods"))
        assert [] == screen.errors()
        screen.leave()
    finally:
        demo.end()
