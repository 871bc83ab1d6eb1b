"""gpugate/ollama/routes.py: what a method and a path mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpugate.ollama.routes import COUNT_TOKENS, Route, RouteKind, WakePaths, match_route, split_path_token

COMPUTE = [
    ("/api/generate", "generate"),
    ("/api/chat", "chat"),
    ("/api/embed", "embed"),
    ("/api/embeddings", "embeddings"),
    ("/v1/chat/completions", "v1/chat/completions"),
    ("/v1/completions", "v1/completions"),
    ("/v1/embeddings", "v1/embeddings"),
    ("/v1/responses", "v1/responses"),
    ("/v1/messages", "v1/messages"),
    ("/v1/audio/transcriptions", "v1/audio/transcriptions"),
]
METADATA = [
    ("GET", "/api/version", "version"),
    ("HEAD", "/api/version", "version"),
    ("GET", "/api/tags", "tags"),
    ("HEAD", "/api/tags", "tags"),
    ("GET", "/api/ps", "ps"),
    ("GET", "/api/status", "status"),
    ("POST", "/api/show", "show"),
    ("GET", "/v1/models", "v1/models"),
    ("GET", "/v1/models/llava", "v1/model"),
    ("GET", "/v1/models/hf.co/user/model", "v1/model"),
    ("GET", "/v1/models/hf.co%2Fuser%2Fmodel", "v1/model"),
    ("GET", "/api/experimental/model-recommendations", "recommendations"),
]
ADMIN = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:ab"),
    ("HEAD", "/api/blobs/sha256:ab"),
    ("POST", "/api/blobs/sha256:ab/more"),
]


@pytest.mark.parametrize(("path", "api"), COMPUTE)
def test_a_post_that_computes_wakes(path: str, api: str) -> None:
    """Only the paths of the table do."""
    assert Route(RouteKind.COMPUTE, path, "chat", api) == match_route("POST", path)


@pytest.mark.parametrize(("method", "path", "api"), METADATA)
def test_metadata(method: str, path: str, api: str) -> None:
    """Metadata never wakes and needs the scope of Ollama's paths."""
    assert Route(RouteKind.METADATA, path, "chat", api) == match_route(method, path)


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_changing_models(method: str, path: str) -> None:
    """Pull, push, create, copy, delete and blobs need `admin` and the pod."""
    route = match_route(method, path)
    assert (RouteKind.ADMIN, "admin", path) == (route.kind, route.scope, route.upstream_path)
    assert (method == "POST" and "blobs" in path) == route.streamed_body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root(method: str) -> None:
    """`GET|HEAD /` is the health text, the only route without a token here."""
    assert Route(RouteKind.HEALTH, "/") == match_route(method, "/")


@pytest.mark.parametrize("name", ["chat", "generate"])
def test_the_aliases(name: str) -> None:
    """`POST /api/v1/chat` is `/api/chat`, upstream path included; the rest of /api/v1 is ours."""
    assert match_route("POST", f"/api/{name}") == match_route("POST", f"/api/v1/{name}")
    assert match_route("GET", f"/api/v1/{name}").kind is RouteKind.WRONG_METHOD


@pytest.mark.parametrize(
    ("method", "path", "own"),
    [
        ("GET", "/api/v1/health", "/api/v1/health"),
        ("GET", "/api/v1/%68ealth", "/api/v1/health"),
        ("POST", "/api/v1/gpu/start", "/api/v1/gpu/start"),
        ("DELETE", "/api/v1/gpu", "/api/v1/gpu"),
        ("GET", "/api/v1", "/api/v1"),
        ("POST", "/api/v1/chat/more", "/api/v1/chat/more"),
    ],
)
def test_own_paths(method: str, path: str, own: str) -> None:
    """gpugate's own paths are handed on decoded."""
    assert Route(RouteKind.GATEWAY_API, own) == match_route(method, path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/chat", ("POST",)),
        ("HEAD", "/api/generate", ("POST",)),
        ("GET", "/v1/chat/completions", ("POST",)),
        ("POST", "/api/tags", ("GET", "HEAD")),
        ("HEAD", "/api/ps", ("GET",)),
        ("GET", "/api/show", ("POST",)),
        ("GET", "/api/pull", ("POST",)),
        ("POST", "/api/delete", ("DELETE",)),
        ("GET", "/api/blobs/sha256:ab", ("POST", "HEAD")),
        ("DELETE", "/v1/models/x", ("GET",)),
        ("POST", "/v1/models/x", ("GET",)),
        ("POST", "/", ("GET", "HEAD")),
        ("OPTIONS", "/api/chat", ("POST",)),
        ("OPTIONS", "/api/unknown", ()),
        ("TRACE", "/api/unknown", ()),
        ("CONNECT", "/api/unknown", ()),
        ("post", "/api/chat", ("POST",)),
    ],
)
def test_a_wrong_method(method: str, path: str, allow: tuple[str, ...]) -> None:
    """What Ollama's router refuses wakes nothing and says what is allowed."""
    route = match_route(method, path)
    assert (RouteKind.WRONG_METHOD, allow) == (route.kind, route.allow)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/unknown"),
        ("HEAD", "/v1/files"),
        ("PUT", "/v1/files/x"),
        ("DELETE", "/api/user/keys/x"),
        ("GET", "/api"),
        ("POST", "/api"),
        ("POST", "/v1/"),
        ("POST", "/api/me"),
        ("POST", "/api/signout"),
        ("POST", "/api/experimental/web_search"),
        ("GET", "/api/experimental/other"),
        ("POST", "/v1/moderations"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/systemone"),
        ("POST", "/api/anything/new"),
        ("PROPFIND", "/api/unknown"),
    ],
)
def test_what_is_not_known(method: str, path: str) -> None:
    """It never wakes, whatever the method is."""
    assert Route(RouteKind.PASS_THROUGH, path, "chat") == match_route(method, path)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_counting_tokens(method: str) -> None:
    """It is not known either, but has an answer of its own."""
    route = match_route(method, "/v1/messages/count_tokens")
    assert (RouteKind.PASS_THROUGH, COUNT_TOKENS) == (route.kind, route.api)


WAKE_PATHS = WakePaths.of(["/v1/rerank", "/v1/images/*", "/api/me*", "/infill", "/v1/models/x/score"])


@pytest.mark.parametrize(
    ("method", "path", "wakes"),
    [
        ("POST", "/v1/rerank", True),
        ("POST", "/v1/rerank?top=3", True),
        ("POST", "/v1/re%72ank", True),
        ("POST", "/v1/images/generations", True),
        ("POST", "/v1/images/", True),
        ("POST", "/api/me", True),
        ("POST", "/api/messages/x", True),
        ("POST", "/infill", True),
        ("POST", "/v1/models/x/score", True),
        ("POST", "/v1/models/x/embed", False),
        ("POST", "/v1/images", False),
        ("POST", "/v1/rerank/more", False),
        ("POST", "/v1/other?x=/v1/rerank", False),
        ("POST", "/infill/x", False),
        ("GET", "/v1/rerank", False),
        ("PUT", "/v1/images/x", False),
        ("GET", "/infill", False),
    ],
)
def test_wake_paths(method: str, path: str, *, wakes: bool) -> None:
    """Compared with the decoded path alone, and only for POST."""
    route = match_route(method, path, WAKE_PATHS)
    assert wakes == (route == Route(RouteKind.COMPUTE, path.partition("?")[0], "chat"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/show"),
        ("POST", "/api/tags"),
        ("POST", "/api/pull"),
        ("POST", "/api/blobs/sha256:ab"),
        ("POST", "/api/v1/gpu/start"),
        ("POST", "/api//chat"),
        ("POST", "/api/tags/"),
        ("POST", "/v1/models/x"),
        ("GET", "/"),
    ],
)
def test_wake_paths_leave_what_is_known(method: str, path: str) -> None:
    """A pattern that covers more than what it was meant for changes no known path."""
    everything = WakePaths.of(["/*"])
    assert match_route(method, path) == match_route(method, path, everything)


EXTRA_PATHS = WakePaths.of(["/tokenize", "/score/*", "/v1/chat/*"])


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/tokenize", RouteKind.COMPUTE),
        ("POST", "/tokenize?top=3", RouteKind.COMPUTE),
        ("GET", "/tokenize", RouteKind.PASS_THROUGH),
        ("DELETE", "/score/7", RouteKind.PASS_THROUGH),
        ("POST", "/v1/chat/other", RouteKind.COMPUTE),
        ("OPTIONS", "/tokenize", RouteKind.NOT_FOUND),
        ("POST", "/tokenize/", RouteKind.NOT_FOUND),
        ("POST", "//tokenize", RouteKind.NOT_FOUND),
        ("POST", "/infill", RouteKind.NOT_FOUND),
    ],
)
def test_extra_paths(method: str, path: str, kind: RouteKind) -> None:
    """Passed on with any method, and only POST computes; an odd spelling is another path."""
    route = match_route(method, path, extra_paths=EXTRA_PATHS)
    assert (kind, kind is not RouteKind.NOT_FOUND) == (route.kind, route.is_extra)


def test_extra_paths_leave_what_is_known() -> None:
    """A chat stays one."""
    assert "v1/chat/completions" == match_route("POST", "/v1/chat/completions", extra_paths=EXTRA_PATHS).api


@pytest.mark.parametrize("path", ["/api/blobs", "/api/blobs/"])
def test_blobs_without_a_digest(path: str) -> None:
    """Whatever is said about blobs needs `admin`."""
    route = match_route("POST", path)
    assert (RouteKind.PASS_THROUGH, "admin") == (route.kind, route.scope)


@pytest.mark.parametrize(
    "path",
    [
        "/apifoo",
        "/v2/x",
        "/API/chat",
        "/metrics",
        "",
        "*",
        "http://host/api/chat",
        "api/chat",
        "/api/chat#x",
        "/api/%zz",
        "/api/ chat",
        "/api/\xff",
        "/api/%ff",
        "/api/chat%00",
        "/api/x%0d%0aHost:%20y",
        "/api/..\\pull",
        "/api/%5c..%5cpull",
        "/api/%252e%252e/pull",
        "/k/token/api/chat",
        "/api/../k/x",
    ],
)
def test_nothing_is_there(path: str) -> None:
    """Other paths, and spellings that no client means, are a 404 and never reach a pod."""
    assert match_route("POST", path).kind is RouteKind.NOT_FOUND


@pytest.mark.parametrize(
    ("path", "upstream"),
    [
        ("/api/%63hat", "/api/chat"),
        ("/%61pi/pull", "/api/pull"),
        ("/api%2Fpull", "/api/pull"),
        ("/api/pull?x=/api/tags", "/api/pull"),
    ],
)
def test_an_encoded_known_path(path: str, upstream: str) -> None:
    """Ollama decodes once before it routes: so do we, and the pod is asked for the plain path."""
    assert match_route("POST", upstream) == match_route("POST", path)
    assert upstream == match_route("POST", path).upstream_path


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/api/chat/", "/api/chat"),
        ("//api/pull", "/api/pull"),
        ("//api/tags", "/api/tags"),
        ("//api/tags/", "/api/tags/"),
        ("/api//pull", "/api/pull"),
        ("/api/../api/pull", "/api/pull"),
        ("/api/./chat", "/api/chat"),
        ("/api/%2e%2e/api/pull", "/api/pull"),
        ("/api/v1/../pull", "/api/pull"),
        ("/api/blobs/a%2f..%2fb", "/api/blobs/b"),
        ("/api/blobs/sha256:ab/", "/api/blobs/sha256:ab"),
        ("/..", "/"),
    ],
)
def test_another_spelling(path: str, location: str) -> None:
    """Slashes and dot segments are redirected as Ollama does it, before anything wakes."""
    assert Route(RouteKind.REDIRECT, location) == match_route("POST", path)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/tags/", 301),
        ("HEAD", "/api/tags/", 307),
        ("POST", "/api/tags/", None),
        ("PUT", "/api/tags/", None),
        ("GET", "/api/chat/", None),
        ("POST", "/v1/chat/completions/", 307),
        ("GET", "/v1/models/x/", 301),
        ("POST", "/v1/models/x/", None),
        ("HEAD", "/api/blobs/sha256:ab/", 307),
        ("GET", "/api/blobs/sha256:ab/", None),
        ("DELETE", "/api/delete/", 307),
        ("GET", "//api/tags", 307),
        ("DELETE", "//api/tags", 307),
        ("GET", "/api//chat", 307),
    ],
)
def test_a_slash_too_many(method: str, path: str, status: int | None) -> None:
    """At the end it is taken away where the method fits, in front and between always; None is a 404."""
    route = match_route(method, path)
    seen = route.status if route.kind is RouteKind.REDIRECT else None
    assert (status, status is None) == (seen, route.kind is RouteKind.NO_ROUTE)


PIECES = st.sampled_from(
    [
        "/",
        "api",
        "v1",
        "chat",
        "pull",
        "tags",
        "show",
        "blobs",
        "models",
        "k",
        ".",
        "..",
        "%2e",
        "%2f",
        "%63hat",
        "//",
        "\\",
        "?",
        "#",
        "%",
        "%25",
        ":",
        "x",
        "é",
        "\x00",
    ]
)
PATHS = st.lists(PIECES, max_size=8).map("/".join) | st.lists(PIECES, max_size=8).map("".join) | st.text()
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", ""])


@settings(deadline=None)
@given(METHODS, PATHS)
def test_any_path(method: str, path: str) -> None:
    """No spelling raises, and what goes upstream means there what it was judged as here."""
    route = match_route(method, path)
    again = match_route(method, route.upstream_path)
    if route.kind in (RouteKind.COMPUTE, RouteKind.METADATA, RouteKind.ADMIN, RouteKind.PASS_THROUGH):
        assert (route.kind, route.scope) == (again.kind, again.scope)
        assert route.upstream_path.isascii()
        assert route.upstream_path.startswith(("/api", "/v1"))
    elif route.kind is RouteKind.REDIRECT:
        assert again.kind is not RouteKind.NOT_FOUND
    else:
        assert route.kind is again.kind


@settings(deadline=None)
@given(METHODS, PATHS)
def test_any_redirect(method: str, path: str) -> None:
    """A redirect stays on this host and comes to rest after at most one more."""
    route = match_route(method, path)
    for _ in range(2):
        if route.kind is RouteKind.REDIRECT:
            assert route.upstream_path[:1] == "/" != route.upstream_path[1:2]
            route = match_route(method, route.upstream_path)
    assert route.kind is not RouteKind.REDIRECT


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("/k/abc.d-e_f/api/chat", ("abc.d-e_f", "/api/chat")),
        ("/k/abc/v1/models", ("abc", "/v1/models")),
        ("/k/abc/", ("abc", "/")),
        ("/k/abc", ("abc", "/")),
        ("/k/abc//api/tags", ("abc", "/api/tags")),
        ("/k/abc/api/../v1/x", ("abc", "/api/../v1/x")),
        ("/k/abc/metrics", None),
        ("/k/abc/apix", None),
        ("/k//api/chat", None),
        ("/k/", None),
        ("/k", None),
        ("/k/a%20b/api/chat", None),
        ("/api/chat", None),
        ("/k/" + "a" * 20_000 + "/api/chat", None),
    ],
)
def test_a_token_in_the_path(path: str, split: tuple[str, str] | None) -> None:
    """Only a token with Ollama's paths behind it is split off."""
    assert split == split_path_token(path)


@settings(deadline=None)
@given(st.text() | PATHS.map("/k/a/".__add__))
def test_any_token_path(path: str) -> None:
    """Splitting never raises, and what is behind is a path."""
    split = split_path_token(path)
    assert split is None or (split[0] and split[1].startswith("/"))
