"""`gpugate init`, `check` and `providers`."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path

import jwt
import pytest

from gpugate.cli.main import main
from gpugate.config import commented_config
from gpugate.lifecycle.state_dir import lock
from gpugate.providers import registry
from tests.cli.support import SECRET, Shell, install_plugin


def example() -> str:
    """Return what `init` is to write: a section for each installed provider."""
    return commented_config({plugin.name: plugin.load() for plugin in registry.installed()})


def test_init(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration is written for its owner's eyes only."""
    assert 0 == main(["init"])

    path = bare / "gpugate.toml"
    assert example() == path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert "wrote gpugate.toml" in capsys.readouterr().out


def test_init_over_another(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there stays, unless --force is said; then the new one is the owner's alone as well."""
    path = bare / "mine.toml"
    path.write_text("mine")
    path.chmod(0o644)

    assert 1 == main(["init", "mine.toml"])
    assert "mine" == path.read_text()
    assert [
        "gpugate: mine.toml exists already; --force overwrites it"
    ] == capsys.readouterr().err.splitlines()

    assert 0 == main(["init", "--force", "--config", "mine.toml"])
    assert example() == path.read_text()
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["mine.toml"] == os.listdir(bare)


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("name", ["none/gpugate.toml", "folder"])
def test_init_where_it_cannot(
    bare: Path, capsys: pytest.CaptureFixture[str], name: str, force: list[str]
) -> None:
    """A folder that is missing, or in the way, is one line and status 1."""
    (bare / "folder").mkdir()

    assert 1 == main(["init", name, *force])
    assert 1 == len(capsys.readouterr().err.splitlines())
    assert ["folder"] == os.listdir(bare)


def test_init_on_a_full_disk(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half a file is left that the next `init` would refuse to replace."""
    fdopen = os.fdopen

    def full(descriptor: int, *given: object, **more: object) -> object:
        fdopen(descriptor, *given, **more).close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(bare)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdopen", full)
        assert 0 != main(["init", "new.toml"])
    assert not (bare / "new.toml").exists()


def test_init_of_two(bare: Path) -> None:
    """Two different names cannot both be meant."""
    assert 2 == main(["init", "a.toml", "--config", "b.toml"])


def test_what_init_writes_is_good(shell: Shell) -> None:
    """Once a secret and a provider are given, `check` accepts it; before, it names the two."""
    shell.run("init")
    path = shell.folder / "gpugate.toml"

    before = shell.run("check")
    path.write_text(
        path.read_text()
        .replace('secret = ""', f'secret = "{SECRET}"', 1)
        .replace('provider = ""', 'provider = "parked"', 1)
    )
    after = shell.run("check")

    assert ["gpugate.toml: auth.secret", "gpugate.toml: pod.provider"] == [
        ": ".join(line.split(": ")[:2]) for line in before.complaints
    ]
    assert (2, 0, "") == (before.status, after.status, after.err)
    assert after.out.startswith("ok: gpugate.toml\n")
    assert SECRET not in after.out
    assert "GPUGATE_TOKEN" not in after.out


def test_check_of_a_token(shell: Shell) -> None:
    """The end of the token that the command line uses is told, the token not."""
    shell.configure()
    token = jwt.encode({"exp": 2e9}, SECRET)

    ended = shell.run("check", GPUGATE_TOKEN=token)

    assert "  GPUGATE_TOKEN: ends on 2033-05-18 03:33 UTC, in " in ended.out
    assert token not in ended.out


def test_check_says_what_follows(shell: Shell) -> None:
    """When the pod is stopped, what is known of prices, and where the money ends."""
    shell.configure("[cost]\nhourly_rate = 0.4\nmonthly_budget = 20\nuser_share = 0.25\n")
    plain = shell.run("check").out.splitlines()
    more = {"IDLE_POLICY": "learned", "IDLE_TIMEOUT": "900", "MAX_SESSION": "4h"}
    kept = {f"GPUGATE_POD__{key}": value for key, value in more.items()}
    other = shell.run("check", GPUGATE_SERVER__ON_EXIT="keep", GPUGATE_COST__HOURLY_RATE="0", **kept).out

    assert "  idle stop: 15m after the last answer has ended" in plain
    assert "  price: the provider's; where it tells none: 0.40 USD an hour (cost.hourly_rate)" in plain
    assert "  budget: no new start after 20.00 USD in a month, and 25% of it for each user" in plain
    assert "  when gpugate ends: the pod is stopped" in plain
    words = "15m after the last answer has ended, sooner where past use says so; after 4h in any case"
    assert f"  idle stop: {words}" in other
    assert "where it tells none: unknown (cost.hourly_rate)" in other
    assert "  when gpugate ends: the pod is left running" in other


SEVERAL = """
[pods.small]
models = ["phi3*", "llama3.2"]
[pods.large]
idle_timeout = "5m"
lease = "0123456789abcdef"
[pods.large.parked]
phase = "gone"
[[schedule]]
cron = "0 8 * * *"
pod = "large"
"""


def test_check_of_several_pods(shell: Shell) -> None:
    """Each pod's lines begin with its name; with --live each pod's provider is asked."""
    shell.configure(SEVERAL)

    ended = shell.run("check", "--live")

    lines = ended.out.splitlines()
    assert (1, ["gpugate: pod large: provider parked: pod p1 is gone"]) == (ended.status, ended.complaints)
    assert [
        "  pod small: provider: parked",
        "  pod small: models: phi3*, llama3.2",
        "  pod large: provider: parked",
    ] == lines[2:5]
    assert "  pod small: idle stop: 15m after the last answer has ended" in lines
    assert "  pod large: idle stop: 5m after the last answer has ended" in lines
    assert any(line.startswith("  pod large: lease: set GPUGATE_LEASE=") for line in lines)
    assert "  when gpugate ends: the pods are stopped" in lines
    assert any(line.startswith("  schedule 1 (0 8 * * *): starts the pod large and") for line in lines)
    assert any(line.startswith("  note: pod small: ") for line in lines)
    assert "  pod small: provider parked: pod p1 is stopped" in lines


def test_check_of_a_short_idle_time(shell: Shell) -> None:
    """Fifteen seconds, where minutes may have been meant, are asked about."""
    shell.configure()

    ended = shell.run("check", GPUGATE_POD__IDLE_TIMEOUT="15")

    assert 0 == ended.status
    assert "  note: pod.idle_timeout: 15s is short" in ended.out


def test_check_of_a_taken_port(shell: Shell) -> None:
    """That `serve` could not listen is a note: it may be the gateway itself."""
    shell.configure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        while_taken = shell.run("check", GPUGATE_SERVER__PORT=port)
    free = shell.run("check", GPUGATE_SERVER__PORT=port)

    assert (0, 0) == (while_taken.status, free.status)
    assert f"  note: port {port} on 127.0.0.1 is already in use" in while_taken.out
    assert "already in use" not in free.out


@pytest.mark.parametrize("command", ["check", "serve"])
def test_no_configuration_at_all(shell: Shell, command: str) -> None:
    """The places that were searched are named, and so they are when variables are enough."""
    places = f"gpugate.toml, {shell.env['HOME']}/.config/gpugate/gpugate.toml, /etc/gpugate/gpugate.toml"

    ended = shell.run(command)

    assert 2 == ended.status
    assert f"no configuration file: looked for {places}; --config names another" in ended.complaints[-1]
    env = {"GPUGATE_AUTH__SECRET": SECRET, "GPUGATE_POD__PROVIDER": "parked"}
    if command == "check":
        assert f"ok: the environment (no file at {places})" in shell.run("check", **env).out


def test_check_of_a_plugins_section(shell: Shell) -> None:
    """The selected plugin's section is judged too, as strictly, and its secret is not shown."""
    shell.configure("[providers.parked]\napi_kee = 'hidden'\n[providers.other]\nanything = 1\n")

    ended = shell.run(
        "check", GPUGATE_PROVIDERS__PARKED__PHASE="5", GPUGATE_PROVIDERS__PARKED__API_KEY_FILE="no"
    )

    assert 2 == ended.status
    assert [
        "GPUGATE_PROVIDERS__PARKED__API_KEY_FILE: providers.parked.api_key_file: "
        "cannot be read: No such file or directory",
        "gpugate.toml: providers.parked.api_kee: unknown key; did you mean providers.parked.api_key?",
    ] == ended.complaints


def test_check_live(shell: Shell) -> None:
    """A pod that is off is fine."""
    shell.configure()

    ended = shell.run("check", "--live")

    assert (0, "") == (ended.status, ended.err)
    assert "provider parked: pod p1 is stopped" in ended.out


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            "gpu = 'A40'\nrate = 0.44\ndisk = 0.006",
            "A40, 0.44 USD an hour, 0.11 USD for the 15m before an idle stop, "
            "its disk 4.38 USD a month while it is stopped",
        ),
        ("", "GPU unknown, 0.40 EUR an hour, 0.10 EUR for the 15m before an idle stop"),
    ],
)
def test_check_live_of_what_it_costs(shell: Shell, section: str, words: str) -> None:
    """By the provider's price, else by the configured one."""
    currency = "USD" if section else "EUR"
    shell.configure(f"[cost]\nhourly_rate = 0.4\ncurrency = '{currency}'\n[providers.parked]\n{section}\n")

    assert f"  provider parked: {words}\n" in shell.run("check", "--live").out


def test_check_live_of_an_unknown_price(shell: Shell) -> None:
    """It says what to set."""
    shell.configure()

    out = shell.run("check", "--live").out

    assert "  provider parked: GPU unknown, price unknown: set cost.hourly_rate\n" in out


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("raises = 'AuthFailed'", "gpugate: provider parked: said the provider"),
        ("raises = 'bug'\napi_key = 'hidden'", "gpugate: provider parked: the plugin failed with KeyError"),
        ("phase = 'gone'", "gpugate: provider parked: pod p1 is gone"),
    ],
)
def test_check_live_of_a_provider_that_is_not_well(shell: Shell, section: str, line: str) -> None:
    """What the provider says is one line and status 1."""
    shell.configure(f"[providers.parked]\n{section}\n")

    ended = shell.run("check", "--live")

    assert (1, [line]) == (ended.status, ended.complaints)


def test_check_live_of_a_running_pod(shell: Shell, fake_gateway: object) -> None:
    """A running pod's Ollama is asked; one that does not answer is told."""
    url = fake_gateway.url  # type: ignore[attr-defined]
    shell.configure(f"[providers.parked]\nphase = 'running'\nollama = '{url}'\n")
    unwell = shell.run("check", "--live")
    fake_gateway.answer("/api/version", '{"version":"0.30"}')  # type: ignore[attr-defined]
    well = shell.run("check", "--live")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
        gone = shell.run("check", "--live", GPUGATE_PROVIDERS__PARKED__OLLAMA=away)

    assert (1, ["gpugate: pod: its Ollama is not healthy: 404"]) == (unwell.status, unwell.complaints)
    assert (0, "") == (well.status, well.err)
    assert (1, ["gpugate: pod: its Ollama is not healthy: Connection refused"]) == (
        gone.status,
        gone.complaints,
    )


def bot_env(fake_gateway: object) -> dict[str, str]:
    """A bot whose Telegram and whose local Ollama are the fake."""
    url: str = fake_gateway.url  # type: ignore[attr-defined]
    return {
        "GPUGATE_BOT__ENABLED": "true",
        "GPUGATE_BOT__MODE": "polling",
        "GPUGATE_BOT__TOKEN": "1:x",
        "GPUGATE_BOT__API_BASE": url,
        "GPUGATE_BOT__OLLAMA_URL": url,
    }


def test_check_live_of_the_bot(shell: Shell, fake_gateway: object) -> None:
    """Telegram is asked who the bot is; nothing that is said has the token in it."""
    env = bot_env(fake_gateway)
    shell.configure()
    fake_gateway.answer("/api/tags", '{"models":[{"name":"phi3:mini"}]}')  # type: ignore[attr-defined]
    unknown = shell.run("check", "--live", **env)
    fake_gateway.answer("/bot1:x/getMe", '{"ok":true,"result":{"username":"gpu_bot"}}')  # type: ignore[attr-defined]
    known = shell.run("check", "--live", **env)
    away = shell.run("check", "--live", **{**env, "GPUGATE_BOT__API_BASE": "http://127.0.0.1:1"})

    assert (1, ["gpugate: bot.token: Telegram does not know this bot"]) == (
        unknown.status,
        unknown.complaints,
    )
    assert (0, "") == (known.status, known.err)
    assert "  Telegram: knows the bot as @gpu_bot" in known.out.splitlines()
    assert (1, ["gpugate: bot.api_base: Telegram does not answer: Connection refused"]) == (
        away.status,
        away.complaints,
    )


def test_check_live_of_the_local_ollama(shell: Shell, fake_gateway: object) -> None:
    """With the bot on, the local Ollama is asked for the bot's model; the bot works without."""
    env = bot_env(fake_gateway)
    fake_gateway.answer("/bot1:x/getMe", '{"ok":true,"result":{"username":"gpu_bot"}}')  # type: ignore[attr-defined]
    shell.configure()
    off = shell.run("check", "--live", **env)
    fake_gateway.answer("/api/tags", '{"models":[{"name":"phi3:mini"}]}')  # type: ignore[attr-defined]
    there = shell.run("check", "--live", **env)
    lacking = shell.run("check", "--live", GPUGATE_BOT__INTENT_MODEL="tinyllama", **env)

    assert {(0, "")} == {(one.status, one.err) for one in (off, there, lacking)}
    keywords = "until then the bot goes by English keywords\n"
    assert f"  note: bot.ollama_url: the local Ollama does not answer: 404; {keywords}" in off.out
    assert "  local Ollama: has phi3:mini\n" in there.out
    assert f"  note: bot.intent_model: needs `ollama pull tinyllama`; {keywords}" in lacking.out


def test_providers(shell: Shell) -> None:
    """Name, distribution, version and capabilities, for people and for machines."""
    text, machine = shell.run("providers"), shell.run("providers", "--json")

    (row,) = [row for row in json.loads(machine.out) if row["name"] == "parked"]
    assert ("gpugate-parked", "1.2") == (row["distribution"], row["version"])
    assert (True, False, 2.0) == tuple(
        row["capabilities"][key] for key in ("resume", "stable_urls", "min_poll_s")
    )
    (line,) = [line for line in text.out.splitlines() if line.startswith("parked")]
    assert "gpugate-parked 1.2" in line
    assert "resume" in line
    assert "min_poll_s=2" in line


def test_a_broken_plugin(tmp_path: Path, shell: Shell) -> None:
    """It is listed with its error and does no harm to the others."""
    broken = install_plugin(tmp_path / "broken", "nowhere:Nothing")
    (broken / "gpugate_parked-1.2.dist-info").rename(broken / "gpugate_broken-0.1.dist-info")
    about = broken / "gpugate_broken-0.1.dist-info"
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gpugate-broken\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[gpugate.providers]\nbroken = nowhere:Nothing\n")
    path = f"{shell.env['PYTHONPATH']}{os.pathsep}{broken}"
    shell.configure()

    ended = shell.run("providers", "--json", PYTHONPATH=path)
    check = shell.run("check", PYTHONPATH=path)

    rows = {row["name"]: row for row in json.loads(ended.out)}
    assert None is rows["broken"]["capabilities"]
    assert "ModuleNotFoundError" in rows["broken"]["error"]
    assert rows["parked"]["capabilities"]
    assert (0, 0) == (ended.status, check.status)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_state_folder_that_cannot_be(shell: Shell, command: str) -> None:
    """`check` and `serve` say so at once, with the key, and status 2: the first request would be too late."""
    shell.configure("[state]\ndir = '/dev/null/state'\n")

    ended = shell.run(command)

    said = "gpugate.toml: state.dir: /dev/null/state cannot be used: Not a directory (or GPUGATE_STATE__DIR)"
    assert (2, [said]) == (ended.status, ended.complaints)


def test_a_state_folder_that_is_missing(shell: Shell) -> None:
    """It is made, for its owner's eyes only."""
    shell.configure("[state]\ndir = 'of/mine'\n")

    assert 0 == shell.run("check").status
    assert 0o700 == stat.S_IMODE((shell.folder / "of" / "mine").stat().st_mode)


@pytest.mark.parametrize(
    ("command", "below"), [(["serve"], "state"), (["demo", "--port", "0"], "state/demo")]
)
def test_a_second_gateway_on_one_state_folder(shell: Shell, command: list[str], below: str) -> None:
    """It would adopt the first one's pod and stop it at its exit: status 1, and the other one is named."""
    folder = shell.folder / below
    folder.mkdir(parents=True)
    shell.configure()
    with lock(folder, print):
        ended = shell.run(*command, GPUGATE_STATE__DIR="state", GPUGATE_SERVER__PORT="0")

    (line,) = ended.complaints
    assert (1, "") == (ended.status, ended.out)
    assert f"state.dir: {folder} is in use by another gateway (process {os.getpid()})" in line


@pytest.mark.parametrize("command", ["'nosuchprogram', 'serve'", "'/dev/null'"])
def test_check_live_of_a_local_command_that_is_not_there(shell: Shell, command: str) -> None:
    """The program is looked for: without it the first request would fail."""
    shell.configure(f"[providers.local]\ncommand = [{command}]\n")

    ended = shell.run("check", "--live", GPUGATE_POD__PROVIDER="local")

    (line,) = ended.complaints
    program = command.partition(",")[0]
    said = f"providers.local.command: there is no program {program} that can be run"
    assert (1, f"gpugate: provider local: {said}") == (ended.status, line)


def test_check_of_what_may_surprise(shell: Shell) -> None:
    """That is a note among what it comes to, and no complaint."""
    shell.configure()

    ended = shell.run("check", GPUGATE_POD__MAX_SESSION="2m")

    assert (0, "") == (ended.status, ended.err)
    assert "  note: pod.max_session: 2m is no longer than pod.warmup_timeout (3m): a session" in ended.out


def test_check_of_a_new_install(shell: Shell) -> None:
    """It says which models clients see, until those of the pod are known."""
    path = shell.folder / "gpugate.toml"
    path.write_text(
        f'[auth]\nsecret = "{SECRET}"\n[pod]\nprovider = "parked"\n[catalog]\nmodels = ["own:1b"]\n'
        f'[state]\ndir = "{shell.folder}/state"\n'
    )
    words = "until then the listed ones are own:1b, llava:latest, deepseek-coder:latest"

    assert words in shell.run("check").out
    (shell.folder / "state").mkdir(mode=0o700, exist_ok=True)
    learned = {"format": 1, "pod": {"id": "parked"}, "answers": {"tags": '{"models":[{"name":"x"}]}'}}
    (shell.folder / "state" / "catalog.json").write_text(json.dumps(learned))
    assert "until then" not in shell.run("check").out


CHOOSING = """
[auth]
secret = "0123456789012345678901234567890123456789"
[pod]
provider = "vastai"
[providers.vastai]
api_key = "k"
mode = "ephemeral"
max_price = 0.5
gpu_ram = "auto"
"""


def test_check_of_the_gpu_that_fits(shell: Shell) -> None:
    """What is needed is said; without a size the key that helps is named."""
    shell.configure(text=CHOOSING)

    without = shell.run("check", GPUGATE_POD__PULL="llava")
    sized = shell.run("check", GPUGATE_POD__PULL="llava,llava:13b")

    assert 2 == without.status
    assert "pod.pull: name the pod's models, with the size in the name" in without.err
    assert "  GPU: the cheapest on offer with 10.9 GiB for llava:13b (7.9 GB)" in sized.out.splitlines()
