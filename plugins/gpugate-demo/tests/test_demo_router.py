"""Routes, CORS and the Host check of a simulated Ollama."""

import pytest
from gpugate_demo.router import ROUTES, Found, NotThere, Redirected, WrongMethod, cors, find, host_allowed


class TestFind:
    def test_every_route(self):
        """Each row of the table is found by its own method and path."""
        assert ROUTES
        assert ROUTES == {
            (method, path): find(method, path.replace("*", "x")).name for method, path in ROUTES
        }

    def test_a_path_that_ends_in_a_name(self):
        assert Found("openai_model", "qwen2.5-coder:7b") == find("GET", "/v1/models/qwen2.5-coder:7b")

    @pytest.mark.parametrize(
        ("method", "path", "expected"),
        [
            ("GET", "/api/chat", WrongMethod("POST")),
            ("OPTIONS", "/api/tags", WrongMethod("GET, HEAD")),
            ("HEAD", "/api/ps", WrongMethod("GET")),
            ("GET", "/api/blobs/sha256:ab", WrongMethod("HEAD, POST")),
            ("POST", "/v1/messages/count_tokens", NotThere()),
            ("GET", "/v1/models/a/b", NotThere()),
            ("GET", "/nope", NotThere()),
            ("GET", "/api", NotThere()),
            ("GET", "/api/tags/", Redirected(301, "/api/tags")),
            ("POST", "/api/chat/", Redirected(307, "/api/chat")),
            ("HEAD", "/api/tags/", Redirected(307, "/api/tags")),
            ("POST", "/api/tags/", NotThere()),
            ("GET", "/api/chat/", NotThere()),
            ("GET", "//api/tags", Redirected(307, "/api/tags")),
            ("POST", "/api//tags/", Redirected(307, "/api/tags/")),
        ],
    )
    def test_what_is_no_route(self, method, path, expected):
        """A known path with another method is 405, a slash too many a redirect, the rest 404."""
        assert expected == find(method, path)


class TestCors:
    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost:3000",
            "https://127.0.0.1",
            "http://0.0.0.0:8080",
            "app://obsidian.md",
            "tauri://localhost",
            "http://me:1",
        ],
    )
    def test_welcome_origins(self, origin):
        """Local ones, those of desktop programs and the server's own are let in."""
        assert cors("POST", "me:1", origin) not in (403, 204)

    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
    def test_a_foreign_origin(self, method):
        """Refused whatever the method is."""
        assert 403 == cors(method, "me:1", "https://webui.example")

    def test_an_origin_that_was_allowed(self):
        assert 204 == cors("OPTIONS", "me:1", "https://webui.example", ["https://webui.example"])

    def test_an_origin_that_is_no_url(self):
        assert 403 == cors("GET", "me:1", "http://[half")


class TestHost:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:11434", "localhost", "[::1]:80", "192.168.1.4", "a.local", "b.internal:1", ""]
    )
    def test_local_names(self, host):
        assert host_allowed(host)

    @pytest.mark.parametrize("host", ["example.com", "8.8.8.8:11434", "localhost.example.com"])
    def test_foreign_names(self, host):
        """What a page on the internet could make a browser send."""
        assert not host_allowed(host)
