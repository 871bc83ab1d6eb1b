"""The way from file and variables to settings, and how every complaint reads."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import attrs
import pytest

from gpugate import Duration
from gpugate.config import Settings, SourcedValue, load_settings, provider_config
from gpugate.config.loader import known_keys
from gpugate.errors import SettingsError
from tests.config.support import (
    ENOUGH,
    GOOD,
    SECRET,
    complaints,
    env_complaints,
    file_complaints,
    load,
    write,
)


def test_a_secret_and_a_provider(tmp_path: Path) -> None:
    """A file with these two is enough; all else has the contract's defaults."""
    settings = load_settings(write(tmp_path, GOOD), {"XDG_STATE_HOME": "/var/state"})

    assert (SECRET, ("demo",)) == (settings.auth.secret, settings.pod.provider)
    assert (11434, 900.0, 64 * 2**20) == (
        settings.server.port,
        settings.pod.idle_timeout,
        settings.server.max_body,
    )
    assert "/var/state/gpugate" == settings.state.dir


def test_no_file_but_variables() -> None:
    """Variables alone are enough, of every type."""
    settings = load(
        {
            "GPUGATE_SERVER__PORT": " 8080 ",
            "GPUGATE_SERVER__MAX_BODY": "20MB",
            "GPUGATE_SERVER__CORS_ORIGINS": "https://a.example, https://b.example:8443",
            "GPUGATE_POD__PROVIDER": '["runpod", "demo"]',
            "GPUGATE_POD__IDLE_TIMEOUT": "1h30m",
            "GPUGATE_POD__RETRY_AFTER": "5",
            "GPUGATE_AUTH__REQUIRE_EXP": "no",
            "GPUGATE_AUTH__PATH_TOKENS": "1",
            "GPUGATE_COST__HOURLY_RATE": "0.10",
            "GPUGATE_BOT__ALLOWED_CHATS": "12,-34",
            "GPUGATE_CATALOG__MODELS": "[]",
        }
    )

    assert 8080 == settings.server.port
    assert 20_000_000 == settings.server.max_body
    assert ("https://a.example", "https://b.example:8443") == settings.server.cors_origins
    assert ("runpod", "demo") == settings.pod.provider
    assert (5400.0, 5.0) == (settings.pod.idle_timeout, settings.pod.retry_after)
    assert (False, True) == (settings.auth.require_exp, settings.auth.path_tokens)
    assert Decimal("0.10") == settings.cost.hourly_rate
    assert (12, -34) == settings.bot.allowed_chats
    assert () == settings.catalog.models


def test_a_variable_over_the_file_and_a_flag_over_both(tmp_path: Path) -> None:
    """The nearer hand wins."""
    path = write(tmp_path, GOOD + "[server]\nport = 1\nhost = '127.0.0.2'\n")
    env = {**ENOUGH, "GPUGATE_SERVER__PORT": "2", "GPUGATE_POD__PROVIDER": "local"}

    settings = load_settings(path, env, overrides={"server.port": 3})

    assert (3, ("127.0.0.2",), ("local",)) == (
        settings.server.port,
        settings.server.host,
        settings.pod.provider,
    )


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ("'::'", ("::",)),
        ("'[::]'", ("::",)),
        ("['127.0.0.1', '[::1]']", ("127.0.0.1", "::1")),
        ("'127.0.0.1, [::1]'", ("127.0.0.1", "::1")),
    ],
)
def test_addresses(tmp_path: Path, given: str, hosts: tuple[str, ...]) -> None:
    """One or a list, brackets or none; a variable and a flag are the same."""
    path = write(tmp_path, GOOD + f"[server]\nhost = {given}\n")
    text = given.strip("'").replace("'", '"')

    assert hosts == load_settings(path, {}).server.host
    assert hosts == load({"GPUGATE_SERVER__HOST": text}).server.host


def test_other_variables() -> None:
    """The command line's own variables, and those that have nothing to do with settings, do no harm."""
    others = {"GPUGATE_URL": "x", "GPUGATE_TOKEN": "y", "GPUGATE_PORT_80_TCP": "z", "OTHER__KEY": "w"}
    assert load() == load(others)


def test_the_complaint_of_the_contract(tmp_path: Path) -> None:
    """A complaint names file, key, what it must be, what it is, and the variable."""
    assert [
        'gpugate.toml: pod.idle_timeout: must be more than 0, is "-5s" (or GPUGATE_POD__IDLE_TIMEOUT)'
    ] == file_complaints(tmp_path, "[pod]\nidle_timeout = '-5s'")


def test_a_slip_in_a_key(tmp_path: Path) -> None:
    """An unknown key is refused, with the nearest one of its section."""
    assert ["gpugate.toml: pod.idle_timout: unknown key; did you mean pod.idle_timeout?"] == file_complaints(
        tmp_path, "[pod]\nidle_timout = '5m'"
    )
    assert [
        "GPUGATE_POD__IDLE_TIMOUT: pod.idle_timout: unknown key; "
        "did you mean pod.idle_timeout (GPUGATE_POD__IDLE_TIMEOUT)?"
    ] == env_complaints({"GPUGATE_POD__IDLE_TIMOUT": "5m"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nidle_timeout = 5", "server.idle_timeout: unknown key; did you mean pod.idle_timeout?"),
        ("port = 5", "port: unknown key; did you mean server.port?"),
        ("[sever]\nport = 5", "sever: unknown section; did you mean server?"),
        ("[queue]\nzzz = 5", "queue.zzz: unknown key; queue has max_waiting, max_bytes, max_wait"),
        ("pod = 3", "pod: must be a table, is 3"),
        ("[[pod]]\nidle_timeout = 5", "pod: must be a table"),
        ("providers = 3", "providers: must be sections, [providers.<name>]"),
        ("[providers]\nrunpod = 'x'", "providers.runpod: must be a section, [providers.runpod]"),
        ("[qqq]", "qqq: unknown section; the configuration has server, auth, pod"),
        ("[pod.sub]\nx = 1", "pod.sub: unknown key"),
        ("zzz = 1", "zzz: unknown key; the configuration has server, auth, pod"),
    ],
)
def test_a_key_in_the_wrong_place(tmp_path: Path, text: str, words: str) -> None:
    """What stands where nothing of its name does is one complaint, which says where it would."""
    (line,) = file_complaints(tmp_path, text)

    assert line.startswith(f"gpugate.toml: {words}") or words in line


def test_an_unknown_section_of_a_variable() -> None:
    """A variable without a section is a complaint of its own."""
    assert ["GPUGATE_PDO__PROVIDER: pdo: unknown section; did you mean pod?"] == env_complaints(
        {"GPUGATE_PDO__PROVIDER": "demo"}
    )
    assert [
        "GPUGATE_PROVIDERS__DEMO: providers.demo: must be a section, [providers.demo], with keys "
        "(a variable is GPUGATE_PROVIDERS__<NAME>__<KEY>)"
    ] == (env_complaints({"GPUGATE_PROVIDERS__DEMO": "x"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pod]\nidle_timeout = 'soon'", 'must be a duration such as "90s", "15m" or "1h30m"'),
        ("[pod]\nidle_timeout = true", "must be a duration"),
        ("[pod]\nidle_timeout = nan", "must be a duration"),
        ("[pod]\nstart_attempts = '3'", 'must be a whole number, is "3"'),
        ("[pod]\nstart_attempts = 2.5", "must be a whole number, is 2.5"),
        ("[pod]\nstart_attempts = true", "must be a whole number, is true"),
        ("[pod]\nprovider = 3", "must be a list, is 3"),
        ("[pod]\nprovider = ['demo', 3]", "pod.provider[1]: must be text, is 3"),
        ("[pod]\nprovider = ['demo', 'demo']", "must name each provider once"),
        ("[pod]\nprovider = 'a b'", "must be a provider's name"),
        ("[pod]\nhealth_path = 'version'", "must be a path that begins with /"),
        ("[auth]\nrequire_exp = 'false'", 'must be true or false, is "false"'),
        ("[auth]\nalgorithms = []", "must name at least one algorithm"),
        ("[auth]\nalgorithms = ['none']", "HS512, RS256"),
        ("[auth]\nalgorithms = 'HS256'", 'must be a list such as ["HS256"], is "HS256"'),
        ("[auth]\nscope_claims = ['']", "must be names of claims"),
        ("[auth]\nscope_claims = 'scp'", 'must be a list such as ["scope", "scp"], is "scp"'),
        (
            "[auth]\nscope_map = {ops = 'root'}",
            "must map words to scopes out of chat, pod, cost, metrics, admin",
        ),
        ("[auth]\nscope_map = {ops = ''}", "must map words to scopes out of chat, pod, cost, metrics, admin"),
        ("[auth]\nscope_map = {ops = ['chat']}", "auth.scope_map.ops: must be text"),
        ("[auth]\nscope_map = 'chat'", "must be a table"),
        (
            "[auth]\ndefault_scope = 'chat,pod'",
            'scopes out of chat, pod, cost, metrics, admin, is "chat,pod"',
        ),
        ("[auth]\njwks_url = 'keys.example'", "must be a URL with https:// or http://"),
        ("[server]\nport = 65536", "must be from 0 to 65535, is 65536"),
        ("[server]\nport = -1", "must be from 0 to 65535, is -1"),
        ("[server]\nport = 0x1" + "0" * 4000, "must be from 0 to 65535, is a huge number"),
        ("[server]\nhost = ''", 'must not be empty; "::" stands for all addresses'),
        ("[server]\nhost = []", "must not be empty"),
        ("[server]\nhost = ['::1', ' ']", "must not be empty"),
        ("[server]\nhost = 5", "must be a list"),
        ("[server]\nhost = [5]", "must be text"),
        ("[server]\nmax_body = '64'\nport = 1979-05-27", "must be a whole number"),
        ("[server]\nmax_body = 0", "must be more than 0, is 0"),
        ("[server]\non_exit = 'Stop'", 'must be "stop" or "keep", is "Stop"'),
        ("[server]\ncors_origins = ['https://a.example/']", 'without a path, is "https://a.example/"'),
        *(
            (f"[server]\nwake_paths = ['/v1/a', '{path}']", f'"*" at most at its end, is "{path}"')
            for path in (
                "v1/rerank",
                "",
                "/",
                "*",
                "/v1/*/x",
                "/v1/**",
                "/v1/a?b",
                "/v1/a b",
                "/v1/%61",
                "/v1//a",
            )
        ),
        *(
            (
                f"[server]\nwake_paths = ['{path}']",
                f'of gpugate\'s own (/api/v1, /k, /dashboard), is "{path}"',
            )
            for path in ("/*", "/k*", "/k/x/api/chat", "/api/v1/image/generate", "/api/v1/*", "/metrics")
        ),
        ("[queue]\nmax_waiting = 0", "must be at least 1, is 0"),
        ("[catalog]\nwhen_stopped = 'x'", 'must be "remembered", "empty" or "static", is "x"'),
        ("[cost]\nhourly_rate = -0.1", "must be at least 0, is -0.1"),
        ("[cost]\nhourly_rate = '0.44'", "must be a number"),
        ("[cost]\nmonthly_budget = inf", "must be a number, is Infinity"),
        ("[cost]\nuser_share = 1.5", "must be from 0 to 1, is 1.5"),
        ("[cost]\ntimezone = 'Mars/Olympus'", 'time zone, such as "Europe/Berlin", is "Mars/Olympus"'),
        ("[cost]\ntimezone = ''", "must be the name of a time zone"),
        ("[cost]\ntimezone = 'Europe'", "must be the name of a time zone"),
        ("[cost]\ntimezone = '../../etc/passwd'", "must be the name of a time zone"),
        ("[cost]\ncurrency = 'dollars'", 'letters such as "USD", is "dollars"'),
        ("[log]\nformat = 'xml'", 'must be "auto", "console" or "json"'),
        ("[log]\nlevel = 'loud'", 'must be "debug", "info"'),
        ("[models]\nvision = ''", "must not be empty"),
        ("[bot]\nmode = 'push'", 'must be "webhook" or "polling"'),
        ("[bot]\npublic_url = 'http://a.example'", "must be a URL with https://"),
        ("[bot]\nallowed_chats = [1, 'x']", 'bot.allowed_chats[1]: must be a whole number, is "x"'),
        ("[comfyui]\nworkflow = 'nowhere.json'", "there is no such file"),
    ],
)
def test_an_impossible_value(tmp_path: Path, text: str, words: str) -> None:
    """A wrong type and an impossible value are refused in words, on one line, with the key."""
    config = write(tmp_path, text)
    env = {"GPUGATE_AUTH__SECRET": SECRET}
    if "provider =" not in text:
        env["GPUGATE_POD__PROVIDER"] = "demo"

    (line,) = complaints(config, env)

    assert words in line


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("GPUGATE_SERVER__PORT", "http", 'must be a whole number, is "http"'),
        ("GPUGATE_SERVER__PORT", "1.5", "must be a whole number, is 1.5"),
        ("GPUGATE_AUTH__REQUIRE_EXP", "maybe", 'must be true or false, is "maybe"'),
        ("GPUGATE_BOT__ALLOWED_CHATS", "1,x", 'bot.allowed_chats[1]: must be a whole number, is "x"'),
        ("GPUGATE_BOT__ALLOWED_CHATS", '["1"]', 'must be a whole number, is "1"'),
        ("GPUGATE_BOT__ALLOWED_CHATS", "[1", "must be a list"),
        ("GPUGATE_COST__HOURLY_RATE", "ten", "must be a number"),
        ("GPUGATE_STATE__DIR", "\0", "state.dir"),
    ],
)
def test_an_impossible_variable(variable: str, value: str, words: str) -> None:
    """Text of a variable that does not stand for what is wanted is refused, under the variable's name."""
    (line,) = env_complaints({variable: value})

    assert line.startswith(f"{variable}: ")
    assert words in line


def test_every_complaint_at_once(tmp_path: Path) -> None:
    """Nothing hides the next mistake: not within a section, and not between sections."""
    text = "[auth]\nleeway = -1\n[pod]\nidle_timeout = 0\nstart_attempts = 0\nspeed = 1\n[log]\nlevel = 1"

    lines = complaints(write(tmp_path, text), {"GPUGATE_QUEUE__MAX_WAIT": "x"})

    keys = [line.split(": ")[1] for line in lines]
    assert [
        *(
            "auth.leeway",
            "pod.idle_timeout",
            "pod.start_attempts",
            "pod.speed",
            "queue.max_wait",
            "log.level",
        ),
        *("auth.secret", "pod.provider"),
    ] == keys


def test_a_complaint_stays_one_line(tmp_path: Path) -> None:
    """A line break in a value or a key does not break the line."""
    lines = file_complaints(tmp_path, '[log]\nlevel = "a\\nb"\n"x\\ny" = 1')

    assert 2 == len(lines)
    assert not any("\n" in line for line in lines)


def test_no_configuration_at_all() -> None:
    """Without anything, what is missing is named, and how to get on."""
    secret, provider = complaints(None)

    assert secret.startswith("no configuration file: auth.secret: ")
    assert "gpugate demo" in provider
    assert "gpugate init" in provider


def test_a_look_at_what_is_given(tmp_path: Path) -> None:
    """Who only looks something up is not asked for all that serving needs, but slips are told."""
    assert [] == complaints(None, complete=False)
    assert 1 == len(complaints(write(tmp_path, "[pod]\nx = 1"), complete=False))


def test_the_folder_of_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in a file is relative to that file, one in a variable to where the command runs."""
    (tmp_path / "flow.json").touch()
    monkeypatch.chdir("/")
    path = write(tmp_path, GOOD + "[comfyui]\nworkflow = 'flow.json'\n[state]\ndir = 'state'")

    settings = load_settings(path, {})

    assert (str(tmp_path / "flow.json"), str(tmp_path / "state")) == (
        settings.comfyui.workflow,
        settings.state.dir,
    )
    assert "/elsewhere" == load({"GPUGATE_STATE__DIR": "elsewhere"}).state.dir


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    """That is said before the gateway runs into it."""
    assert ["is not a folder"] == [
        line.split(": ")[2].partition(" (")[0]
        for line in env_complaints({"GPUGATE_STATE__DIR": str(write(tmp_path, ""))})
    ]


def test_a_state_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """Who is going to use it says what is wrong; the key, the folder and where it was given are named."""
    said = "cannot be used: Read-only file system"
    env = {"GPUGATE_STATE__DIR": "/ro"}

    assert [f"GPUGATE_STATE__DIR: state.dir: /ro {said}"] == env_complaints(
        env, state_problem=lambda folder: said
    )
    assert [] == env_complaints(env, state_problem=lambda folder: None)
    (line,) = complaints(None, ENOUGH, state_problem=lambda folder: f"{said} ({folder.name})")
    assert line.startswith(
        "no configuration file: state.dir: /home/nobody/.local/state/gpugate cannot be used"
    )
    assert line.endswith("(gpugate) (or GPUGATE_STATE__DIR)")


def test_a_state_folder_that_is_wrong_anyway(tmp_path: Path) -> None:
    """One complaint is enough."""
    asked: list[Path] = []
    path = str(write(tmp_path, ""))

    assert 1 == len(env_complaints({"GPUGATE_STATE__DIR": path}, state_problem=asked.append))  # type: ignore[func-returns-value]
    assert [] == asked


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GPUGATE_SERVER_PORT", "GPUGATE_SERVER__PORT"),
        ("GPUGATE_POD_IDLE_TIMEOUT", "GPUGATE_POD__IDLE_TIMEOUT"),
        ("GPUGATE_AUTH_SECRET_FILE", "GPUGATE_AUTH__SECRET_FILE"),
        ("GPUGATE_PROVIDERS_RUNPOD_API_KEY", "GPUGATE_PROVIDERS__<NAME>__<KEY>"),
    ],
)
def test_one_underscore_too_few(name: str, meant: str) -> None:
    """The classic slip is told; in silence the setting would have no effect."""
    assert [f"{name}: unknown variable; did you mean {meant} (two underscores)?"] == env_complaints(
        {name: "1"}
    )


def test_a_port_that_kubernetes_wrote() -> None:
    """A service called gpugate-server brings GPUGATE_SERVER_PORT=tcp://… to every container beside it."""
    assert [] == env_complaints({"GPUGATE_SERVER_PORT": "tcp://10.0.0.7:80", "GPUGATE_STATE_DIR": "/x"})


def test_a_flag_that_is_wrong() -> None:
    """A flag's complaint names the flag."""
    lines = env_complaints({}, overrides={"server.port": SourcedValue("x", "--port", is_text=True)})

    assert ['--port: server.port: must be a whole number, is "x"'] == lines


def test_settings_show_no_secret(tmp_path: Path) -> None:
    """Neither the settings' repr nor their providers' part shows a secret."""
    text = GOOD + "[bot]\ntoken = '123:hidden-token'\n[providers.demo]\napi_key = 'hidden-key'"
    settings = load_settings(write(tmp_path, text), {})

    shown = repr(settings) + repr(settings.providers)

    assert not any(word in shown for word in (SECRET, "hidden-token", "hidden-key"))


def test_settings_are_frozen() -> None:
    """Nobody changes a setting behind another's back."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load().server.port = 1  # type: ignore[misc]


def test_an_unused_provider(tmp_path: Path) -> None:
    """The section of a provider that is not selected is not judged."""
    assert [] == file_complaints(tmp_path, "[providers.other]\nwhatever = 5", config_of=lambda name: Nothing)


def test_a_selected_provider(tmp_path: Path) -> None:
    """The selected ones' sections are judged with all the rest, given or not."""
    text = "[log]\nlevel = 1\n[providers.demo]\ncold_strt = '6s'"

    lines = file_complaints(tmp_path, text, config_of=lambda name: Demo)

    assert [
        'gpugate.toml: log.level: must be "debug", "info", "warning", "error" or "critical", is 1 '
        "(or GPUGATE_LOG__LEVEL)",
        "gpugate.toml: providers.demo.key: is missing (or GPUGATE_PROVIDERS__DEMO__KEY)",
        "gpugate.toml: providers.demo.cold_strt: unknown key; did you mean providers.demo.cold_start?",
    ] == lines


def test_a_provider_that_is_not_installed(tmp_path: Path) -> None:
    """What the registry says is a complaint like any other."""

    def config_of(name: str) -> type[object]:
        raise SettingsError([f"pod.provider: no provider {name!r} is installed"])

    (line,) = file_complaints(tmp_path, "", config_of=config_of)

    assert "GPUGATE_POD__PROVIDER: pod.provider: no provider 'demo' is installed" == line


def test_a_providers_config(tmp_path: Path) -> None:
    """A provider's own Config comes from its section, variables over it."""
    path = write(tmp_path, GOOD + "[providers.Demo]\ncold_start = '6s'\nkey = 'x'")
    settings = load_settings(path, {"GPUGATE_PROVIDERS__DEMO__COLD_START": "250ms"})

    assert Demo(cold_start=0.25, key="x") == provider_config(settings, "demo", Demo)


def test_every_key_has_a_variable() -> None:
    """Each key of the classes is settable by its variable: none of them is unknown."""
    wrong = [
        line
        for key in known_keys()
        for line in env_complaints({"GPUGATE_" + key.upper().replace(".", "__"): ""})
        if "unknown" in line
    ]

    assert [] == wrong


def test_settings_made_in_code() -> None:
    """The classes alone check their values too."""
    assert 11434 == Settings().server.port
    with pytest.raises(ValueError, match="must be from 0 to 65535"):
        type(Settings().server)(port=-1)


@attrs.frozen
class Demo:
    """A provider's Config with a needed key."""

    key: str
    cold_start: Duration = 6.0


@attrs.frozen
class Nothing:
    """A provider's Config without keys."""
