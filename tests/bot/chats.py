"""A person in a chat, and an assistant to talk to, for tests in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from attrs import define, evolve, field, frozen
from gpugate_demo.picture import draw
from gpugate_testing.fakes import FakeCloud

from gpugate.bot.assistant import Assistant, EventWaiter
from gpugate.bot.fantasy_job import FantasyJob
from gpugate.bot.intents.keywords import KeywordIntentParser
from gpugate.bot.intents.model import ParsedBy, ParsedIntent
from gpugate.bot.messenger import Button, IncomingMessage
from gpugate.errors import ImageFailed
from gpugate.generation.fantasy import FantasyService
from gpugate.generation.image_format import DecodedImage
from gpugate.generation.images import GeneratedImage, ImageJob, ImageService
from gpugate.generation.stories import StoryService
from gpugate.generation.workflows import load
from gpugate.lifecycle.lease import ServingPod
from gpugate.lifecycle.leased_call import LeasedCall
from gpugate.provider_api import MAIN_POD, Endpoint, PodReport
from gpugate.tasks import spawn
from tests.generation.stay import FakePainter, FakeTexts
from tests.lifecycle.support import Stage

PNG = draw("x", 1, 16, 16)
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@define
class FakeChat:
    """What a person reads; as a part of a `whole`, what answers one message."""

    said: list[str] = field(factory=list)
    buttons: list[Button] = field(factory=list)
    pictures: list[tuple[bytes, str]] = field(factory=list)
    busy_shown: int = 0
    broken: Exception | None = None
    whole: FakeChat | None = None

    async def send_text(self, text: str, buttons: Sequence[Button] = ()) -> None:
        if self.broken is not None:
            raise self.broken
        self.said.append(text)
        self.buttons.extend(buttons)
        if self.whole is not None:
            await self.whole.send_text(text, buttons)

    async def send_image(self, png: bytes, caption: str) -> None:
        self.pictures.append((png, caption))
        if self.whole is not None:
            await self.whole.send_image(png, caption)

    async def show_typing(self) -> None:
        self.busy_shown += 1
        if self.whole is not None:
            await self.whole.show_typing()


@define
class FakeIntentParser:
    """Understands by words, in the name of the model; or as it is told."""

    trouble: str = ""
    understood: ParsedIntent | None = None
    asked: list[str] = field(factory=list)

    async def parse(self, text: str) -> ParsedIntent:
        self.asked.append(text)
        by = ParsedBy.KEYWORDS if self.trouble else ParsedBy.MODEL
        found = self.understood or KeywordIntentParser().parse(text)
        return ParsedIntent(intent=found.intent, period=found.period, prompt=text, by=by)


@define
class FullCloud(FakeCloud):
    """A cloud whose pod has a ComfyUI."""

    def report(self) -> PodReport:
        report = FakeCloud.report(self)
        if "ollama" not in report.endpoints:
            return report
        return evolve(report, endpoints={**report.endpoints, "comfyui": Endpoint("http://comfyui")})


@frozen
class QuickPictures(ImageService):
    """Pictures that are not cleaned in a thread, which virtual time cannot wait for."""

    async def generate(self, visit: LeasedCall, drawing: ImageJob, progress: Any = None) -> GeneratedImage:
        async def work(pod: ServingPod) -> GeneratedImage:
            endpoint = pod.endpoints.get("comfyui")
            if endpoint is None:
                raise ImageFailed("the pod has no ComfyUI")
            return GeneratedImage(DecodedImage("PNG", 16, 16, PNG), "x.png", drawing.request.seed)

        return await visit.run(work)


@frozen(kw_only=True)
class SessionCost:
    """As `billing.reports` has it."""

    estimated_cost: Decimal | None
    currency: str = "USD"
    duration_s: float = 1380.0
    provider: str = "runpod"
    hourly_rate: Decimal | None = Decimal("0.34")


@frozen(kw_only=True)
class Summary:
    """As `billing.reports` has it."""

    session_count: int = 7
    total_hours: Decimal = Decimal(18)
    estimated_total: Decimal = Decimal("4.90")
    currency: str = "USD"
    warnings: Sequence[str] = ()


@define
class FakeCosts:
    """A cost book with these pages; an exception on one is raised."""

    now: Any = None
    month: Any = Summary()
    day: Any = Decimal("0.40")
    rows: Sequence[object] = ()
    asked: list[tuple[datetime, datetime]] = field(factory=list)

    async def session(self) -> Any:
        return self._page(self.now)

    async def summary(self, month: str | None = None) -> Any:
        return self._page(self.month)

    async def today(self) -> Any:
        return self._page(self.day)

    async def sessions(self, since: datetime | None, until: datetime | None) -> Sequence[object]:
        return self.rows

    async def spent(self, since: datetime, until: datetime) -> Any:
        self.asked.append((since, until))
        return self._page(self.day)

    @staticmethod
    def _page(page: Any) -> Any:
        if isinstance(page, Exception):
            raise page
        return page


@define
class Talk:
    """A chat with the assistant over a real lifecycle and fake clouds.

    Attributes:
        known: begins when it is known what the provider has.
        story: what the vision model tells; an exception in it is raised.
    """

    clouds: list[FakeCloud] = field(factory=lambda: [FullCloud(boot_s=40.0, stop_s=3.0)])
    numbers: dict[str, Any] = field(factory=dict)
    more: dict[str, Any] = field(factory=dict)
    known: bool = True
    require: Any = field(default=lambda model, failure: None)
    story: list[Any] = field(factory=lambda: ["A cat", " sat."])
    chat: FakeChat = field(factory=FakeChat)
    intents: FakeIntentParser = field(factory=FakeIntentParser)
    costs: FakeCosts = field(factory=FakeCosts)
    crashes: list[str] = field(factory=list)
    texts: FakeTexts = field(init=False)
    stage: Stage = field(init=False)
    assistant: Assistant = field(init=False)

    async def __aenter__(self) -> Talk:
        waiter = EventWaiter()
        self.stage = Stage(self.clouds, self.numbers, listeners=(waiter.on_event,), wall=wall)
        await self.stage.__aenter__()
        self.texts = FakeTexts([self.story])
        pictures = QuickPictures(FakePainter(PNG), load("", "", "c"))
        fantasies = FantasyService(StoryService(self.texts, "llava"), pictures)
        self.assistant = Assistant(
            pods={MAIN_POD: self.stage.lifecycle},
            waiter=waiter,
            costs=self.costs,  # type: ignore[arg-type]
            fantasy_job=FantasyJob(self.stage.lifecycle, fantasies, require=self.require),
            intent_parser=self.intents,
            version="1.2.3",
            on_crash=lambda name, error: self.crashes.append(f"{name}: {error!r}"),
            **self.more,
        )
        if self.known:
            await self.stage.lifecycle.status()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stage.__aexit__()

    async def write(self, text: str = "", **more: Any) -> list[str]:
        """Write, wait for all that comes of it, and return what was said."""
        answers = FakeChat(whole=self.chat)
        await self.assistant.handle_message(message(text, **more), answers)
        return answers.said

    def writing(self, text: str = "", **more: Any) -> asyncio.Task[list[str]]:
        """The same, in the background."""
        return spawn(self.write(text, **more), "somebody writes")

    async def press(self, text: str, chat: str = "7") -> list[str]:
        """Press the newest button that says this."""
        button = next(button for button in reversed(self.chat.buttons) if button.text == text)
        return await self.write(pressed=button.callback_id, chat=chat)

    @property
    def word(self) -> str:
        """The pod's status."""
        return str(self.stage.lifecycle.current_status)


def wall() -> datetime:
    """A clock on the wall that keeps to virtual time."""
    return NOON + timedelta(seconds=asyncio.get_running_loop().time())


def message(text: str = "", *, photo: Any = None, pressed: str = "", chat: str = "7") -> IncomingMessage:
    """A message; `photo` may be bytes, or an exception."""
    return IncomingMessage(
        user=f"telegram:{chat}", chat=chat, text=text, pressed=pressed, photo=photo and fetching(photo)
    )


def fetching(photo: Any) -> Callable[[], Awaitable[bytes]]:
    """Fetches these bytes, or raises."""

    async def fetch() -> bytes:
        if isinstance(photo, Exception):
            raise photo
        return bytes(photo)

    return fetch
