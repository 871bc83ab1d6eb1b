"""Which web pages may call."""

from __future__ import annotations

import pytest

from gpugate.proxy.cors import Cors

PAGE = "https://chat.example.org"


class TestOrdinaryAnswers:
    def test_nobody_is_listed(self) -> None:
        """Nothing is added for a page that is not listed, nor for no page."""
        assert [b"", b""] == [Cors([]).headers_for(PAGE), Cors([PAGE]).headers_for(None)]

    def test_listed(self) -> None:
        """A listed page is named, and may read the headers that are ours."""
        expected = (
            b"Access-Control-Allow-Origin: https://chat.example.org\r\n"
            b"Access-Control-Expose-Headers: "
            b"X-Request-Id, X-Gpugate-Waited-Ms, X-Gpugate-Code, Retry-After\r\n"
            b"Vary: Origin\r\n"
        )

        assert expected == Cors([PAGE + "/"]).headers_for(PAGE)

    def test_everybody(self) -> None:
        """A star is answered with a star, the same for all."""
        answers = {Cors(["*"]).headers_for(origin) for origin in (PAGE, "null", "app://x")}

        assert 1 == len(answers)
        assert answers.pop().startswith(b"Access-Control-Allow-Origin: *\r\n")


class TestMatching:
    @pytest.mark.parametrize(
        ("listed", "origin"),
        [
            (PAGE, PAGE),
            (PAGE, "HTTPS://Chat.Example.Org"),
            ("http://localhost:*", "http://localhost:3000"),
            ("https://*.example.org", "https://a.b.example.org"),
            ("app://*", "app://obsidian.md"),
            ("null", "null"),
        ],
    )
    def test_match(self, listed: str, origin: str) -> None:
        """Letter case does not matter, and a star stands for a part."""
        assert Cors(["https://other.example", listed]).allows(origin)

    @pytest.mark.parametrize(
        ("listed", "origin"),
        [
            (PAGE, "https://chat.example.org.evil.example"),
            (PAGE, "http://chat.example.org"),
            (PAGE, "https://chat.example.org:444"),
            (PAGE, "null"),
            (PAGE, ""),
            ("https://*.example.org", "https://example.org"),
            ("https://*.example.org", "https://evil.example/.example.org"),
            ("https://*.example.org", "https://evil.example:1@x.example.org"),
            ("https://*.example.org", "https://evilxexample.org"),
            ("http://localhost:*", "http://localhost:3000@evil.example"),
            ("https://kim.example", "https://\u212aim.example"),
            ("https://*.example.org", "https://\udcff.example.org"),
        ],
    )
    def test_no_match(self, listed: str, origin: str) -> None:
        """Nothing that only looks like it."""
        cors = Cors([listed])

        assert (False, b"") == (cors.allows(origin), cors.headers_for(origin))


class TestPreflight:
    def test_not_listed(self) -> None:
        """An unlisted page is refused, and told nothing."""
        status, headers = Cors([PAGE]).preflight("https://evil.example", "authorization")

        assert (403, ["Vary"]) == (status, [name for name, _ in headers])

    def test_listed(self) -> None:
        """A listed page may send what it asked to send."""
        status, headers = Cors([PAGE]).preflight(PAGE, "authorization, x-stainless-os")

        assert 204 == status
        assert PAGE == dict(headers)["Access-Control-Allow-Origin"]
        assert "authorization, x-stainless-os" == dict(headers)["Access-Control-Allow-Headers"]
        assert "DELETE" in dict(headers)["Access-Control-Allow-Methods"]
        assert len(headers) == len({name for name, _ in headers})
        assert "Access-Control-Allow-Private-Network" not in dict(headers)

    @pytest.mark.parametrize("asked", [None, "", "a\r\nX-Evil: 1", "a;b", "é", "x" * 3000, ",", " a b "])
    def test_strange_wish(self, asked: str | None) -> None:
        """What is no list of names is not echoed."""
        headers = dict(Cors(["*"]).preflight(PAGE, asked)[1])

        assert "Authorization, Content-Type, Accept, X-Request-Id" == headers["Access-Control-Allow-Headers"]

    def test_gateway_at_home(self) -> None:
        """A listed page from the internet may reach a gateway in the private network."""
        headers = dict(Cors([PAGE]).preflight(PAGE, asked_private_network=True)[1])

        assert "true" == headers["Access-Control-Allow-Private-Network"]
