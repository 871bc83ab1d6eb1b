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

        assert expected == Cors([PAGE]).headers_for(PAGE)

    def test_everybody(self) -> None:
        """A star is answered with a star, the same for all."""
        answers = {Cors(["*"]).headers_for(origin) for origin in (PAGE, "null", "app://x")}

        assert 1 == len(answers)
        assert answers.pop().startswith(b"Access-Control-Allow-Origin: *\r\n")


class TestMatching:
    """The grammar itself: tests/config/test_origins.py."""

    def test_one_of_several(self) -> None:
        """Letter case does not matter."""
        cors = Cors(["https://other.example", "http://localhost:*", "null"])

        assert [True, True, False] == [cors.allows(o) for o in ("HTTP://LocalHost:3000", "null", PAGE)]

    @pytest.mark.parametrize("origin", ["https://\u212aim.example", "https://\udcff.kim.example", ""])
    def test_odd_letters(self, origin: str) -> None:
        """What only looks like a listed page after a change of case is none."""
        cors = Cors(["https://kim.example", "https://*.kim.example"])

        assert (False, b"") == (cors.allows(origin), cors.headers_for(origin))

    def test_no_origin(self) -> None:
        """What the configuration's check refuses is refused here."""
        with pytest.raises(ValueError, match="example"):
            Cors([PAGE + "/"])


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
