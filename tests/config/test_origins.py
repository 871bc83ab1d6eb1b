"""The origins of `server.cors_origins`: what is accepted in a file is what is compared."""

from __future__ import annotations

import re

import pytest

from gpugate.config.origins import is_origin, origin_pattern
from gpugate.proxy.cors import Cors

PAGE = "https://chat.example.org"


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        (PAGE, PAGE),
        ("HTTPS://Chat.Example.org", PAGE),
        ("https://chat.example.org:443", PAGE),
        ("http://box:80", "http://box"),
        ("http://box:8080", "http://box:8080"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://localhost:*", "http://localhost:3000"),
        ("http://localhost:*", "http://localhost"),
        ("https://*.example.org", "https://chat.example.org"),
        ("https://*.example.org", "https://a.b.example.org"),
        ("https://*.example.org:8443", "https://a.example.org:8443"),
        ("http://192.168.0.*:3000", "http://192.168.0.17:3000"),
        ("chrome-extension://*", "chrome-extension://kpbcfjmdjgflpgfeifjaeaadcgdfbiop"),
        ("moz-extension://*", "moz-extension://6ffc3de5-4b5f-4f4c-8a3f-1c3f0a8a5c11"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("app://*", "app://obsidian.md"),
        ("null", "null"),
        ("*", "null"),
        ("*", "https://any.example:1"),
    ],
)
def test_match(listed: str, origin: str) -> None:
    """What a listed origin stands for."""
    assert is_origin(listed)
    assert Cors([listed]).allows(origin)


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        (PAGE, "https://chat.example.org.evil.example"),
        (PAGE, "http://chat.example.org"),
        (PAGE, "https://chat.example.org:444"),
        (PAGE, "https://chatxexample.org"),
        (PAGE, "null"),
        (PAGE, ""),
        ("null", PAGE),
        ("https://*.example.org", "https://example.org"),
        ("https://*.example.org", "https://a.example.org:8443"),
        ("https://*.example.org", "http://a.example.org"),
        ("https://*.example.org", "https://evil.example/.example.org"),
        ("https://*.example.org", "https://evil.example:1@x.example.org"),
        ("https://*.example.org", "https://evilxexample.org"),
        ("http://localhost:*", "http://localhost:3000@evil.example"),
        ("http://localhost:*", "http://localhost:3000.evil.example"),
        ("http://localhost:*", "http://localhost:"),
        ("http://localhost:*", "http://localhost.evil.example"),
        ("http://localhost:*", "http://localhost.evil.example:3000"),
        ("chrome-extension://*", "moz-extension://abc"),
        ("chrome-extension://*", "chrome-extension://"),
    ],
)
def test_no_match(listed: str, origin: str) -> None:
    """Nothing that only looks like it."""
    assert is_origin(listed)
    assert not Cors([listed]).allows(origin)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "https://",
        "https:/chat.example",
        "chat.example.org",
        "*.example.org",
        "localhost:*",
        "https://a.example/",
        "https://a.example/path",
        "https://a.example?x",
        "https://me@a.example",
        "https://a.example:0",
        "https://a.example:65536",
        "https://a.example:*0",
        "https://*.example.org:*",
        "https://*.*.org",
        "*://a.example",
        "https://b\u00fccher.example",
        "https://a.example b.example",
        "https://a,b",
        "https://a.example\n",
        "Null ",
        "file://",
        "**",
    ],
)
def test_no_origin(text: str) -> None:
    """What no browser sends is refused in the file, and would not be compared."""
    assert origin_pattern(text) is None
    with pytest.raises(ValueError, match="no origin"):
        Cors([text])


def test_only_the_star_is_special() -> None:
    """No other character of an origin means anything in the expression."""
    assert not re.compile(origin_pattern("https://a.b-c+d.example") or "x").fullmatch(
        "https://a.b-cd.example"
    )
