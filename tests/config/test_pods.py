"""gpugate/config/pods.py: several pods, their defaults, their variables, and what may not be."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from gpugate_runpod.settings import RunPodConfig
from gpugate_vastai.settings import VastConfig

from gpugate.config import Settings, load_settings, provider_config, warnings
from gpugate.config.converter import fields_of
from gpugate.config.schema import Pod, PodSettings
from gpugate.errors import SettingsError
from gpugate.providers import registry
from gpugate.providers.local import LocalConfig
from tests.config.support import ENOUGH, SECRET, complaints, env_complaints, file_complaints, load, write

TWO = f"""
[auth]
secret = "{SECRET}"
[pod]
idle_timeout = "10m"
preload = "none"
[pods.small]
provider = "local"
models = ["llama3.2", "phi3*"]
[pods.code-large]
provider = ["runpod", "vastai"]
idle_timeout = "5m"
[pods.code-large.RunPod]
pod_id = "abc"
[providers.runpod]
api_key = "key"
timeout = "7s"
[providers.vastai]
api_key = "other"
instance_id = 9
"""
KINDS = {"runpod": RunPodConfig, "vastai": VastConfig, "local": LocalConfig}


def config_of(name: str) -> type[Any]:
    """The Config classes of the providers that are installed here."""
    if name not in KINDS:
        raise SettingsError([f"pod.provider: no provider {name!r} is installed"])
    return KINDS[name]


def pods(settings: Settings) -> dict[str, PodSettings]:
    """The pods by name."""
    return {pod.name: pod for pod in settings.pods}


def test_without_pods() -> None:
    """There is one, main, of `[pod]`."""
    settings = load()

    assert () == settings.named_pods
    assert [("main", settings.pod, ())] == [(pod.name, pod.pod, pod.models) for pod in settings.pods]


def test_two_pods(tmp_path: Path) -> None:
    """In the file's order; a key that one leaves out is as in `[pod]`."""
    settings = load_settings(write(tmp_path, TWO), {"HOME": "/home/nobody"}, config_of=config_of)
    small, large = settings.pods

    assert [("small", ("llama3.2", "phi3*")), ("code-large", ())] == [
        (pod.name, pod.models) for pod in settings.pods
    ]
    assert [("local",), ("runpod", "vastai")] == [pod.pod.provider for pod in settings.pods]
    assert [(600, "none"), (300, "none")] == [(p.pod.idle_timeout, p.pod.preload) for p in settings.pods]
    assert ("pod.idle_timeout", "pods.code-large.idle_timeout") == (
        small.path_of("idle_timeout"),
        large.path_of("idle_timeout"),
    )


def test_a_pods_own_provider_section(tmp_path: Path) -> None:
    """It goes before the section of all pods, key by key."""
    settings = load_settings(write(tmp_path, TWO), {"HOME": "/home/nobody"}, config_of=config_of)
    small, large = settings.pods
    runpod = provider_config(settings, "runpod", RunPodConfig, large)

    assert ("key", "abc", 7.0) == (runpod.api_key, runpod.pod_id, runpod.timeout)
    assert 9 == provider_config(settings, "vastai", VastConfig, large).instance_id
    with pytest.raises(SettingsError, match=r"providers\.runpod: pod_id is missing"):
        provider_config(settings, "runpod", RunPodConfig, small)


def test_a_secret_and_its_file_are_one_key(tmp_path: Path) -> None:
    """Whichever the pod gives goes before whichever all pods have."""
    write(tmp_path, "of-file\n", "key")
    base = '[pods.a]\nprovider = "runpod"\n[pods.a.runpod]\npod_id = "x"\n'
    file_over_text = base + 'api_key_file = "key"\n[providers.runpod]\napi_key = "of-text"\n'
    text_over_file = base + 'api_key = "of-text"\n[providers.runpod]\napi_key_file = "key"\n'

    for text, expected in ((file_over_text, "of-file"), (text_over_file, "of-text")):
        for kinds in ({}, {"config_of": config_of}):  # commands that only look read the file later
            settings = load_settings(write(tmp_path, text), ENOUGH, **kinds)
            config = provider_config(settings, "runpod", RunPodConfig, settings.pods[0])
            assert expected == config.api_key


def test_a_pods_lease_in_a_file(tmp_path: Path) -> None:
    """A secret of `[pod]` may be in a file for each pod."""
    write(tmp_path, "l" * 16, "lease")
    text = f'[pod]\nlease = "{"m" * 16}"\n[pods.a]\nlease_file = "lease"\n[pods.b]\n'

    settings = load_settings(write(tmp_path, text), ENOUGH)

    assert ["l" * 16, "m" * 16] == [pod.pod.lease for pod in settings.pods]
    assert "llll" not in repr(settings)


def test_credentials_of_a_service_manager(tmp_path: Path) -> None:
    """`pods_<name>_<key>` and `pods_<name>_<provider>_<key>`, where the key is unset."""
    write(tmp_path, "l" * 16, "pods_code_large_lease")
    write(tmp_path, "of-credential", "pods_code_large_runpod_api_key")
    env = {"HOME": "/home/nobody", "CREDENTIALS_DIRECTORY": str(tmp_path)}

    settings = load_settings(write(tmp_path, TWO), env, config_of=config_of)
    small, large = settings.pods

    assert ("", "l" * 16) == (small.pod.lease, large.pod.lease)
    assert "of-credential" == provider_config(settings, "runpod", RunPodConfig, large).api_key


def test_variables(tmp_path: Path) -> None:
    """`-` is written `_`; a variable goes before the file, and may make a pod of its own."""
    env = {
        "HOME": "/home/nobody",
        "GPUGATE_PODS__CODE_LARGE__IDLE_TIMEOUT": "77",
        "GPUGATE_PODS__CODE_LARGE__RUNPOD__POD_ID": "xyz",
        "GPUGATE_PODS__CODE_LARGE__MODELS": "a*, b",
        "GPUGATE_PODS__BY_VARIABLE__PROVIDER": "local",
        "GPUGATE_PODS__BY_VARIABLE__LOCAL__OLLAMA_URL": "http://127.0.0.1:5",
    }
    settings = load_settings(write(tmp_path, TWO), env, config_of=config_of)
    large = pods(settings)["code-large"]

    assert ["small", "code-large", "by-variable"] == [pod.name for pod in settings.pods]
    assert (77.0, ("a*", "b")) == (large.pod.idle_timeout, large.models)
    assert "xyz" == provider_config(settings, "runpod", RunPodConfig, large).pod_id
    assert 300.0 == load_settings(write(tmp_path, TWO), ENOUGH).pods[1].pod.idle_timeout


def test_every_key_of_pod_is_taken() -> None:
    """By its variable, for one pod alone."""
    wrong = [
        line for key in fields_of(Pod) for line in env_complaints({f"GPUGATE_PODS__A__{key.upper()}": ""})
    ]

    assert [] == [line for line in wrong if "unknown" in line]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[pods.a]\nidle_timout = 5",
            "pods.a.idle_timout: unknown key; did you mean pods.a.idle_timeout?",
        ),
        ("[pods.a]\nmax_wait = 5", "pods.a.max_wait: unknown key; did you mean queue.max_wait?"),
        (
            "[pods.a]\nidle_timeout = '-5s'",
            'pods.a.idle_timeout: must be more than 0, is "-5s" (or GPUGATE_PODS__A__IDLE_TIMEOUT)',
        ),
        (
            "[pods.my-pod]\nmodels = 'x'",
            'pods.my-pod.models: must be a list, is "x" (or GPUGATE_PODS__MY_POD__MODELS)',
        ),
        (
            "[pods.a]\nmodels = ['x', '']",
            'pods.a.models: must be patterns of names of models, is "" (or GPUGATE_PODS__A__MODELS)',
        ),
        ("[pods.a.idle_timeout]\nx = 5", "pods.a.idle_timeout: must be a value, is a section"),
        (
            "[pods.idle_timeout]\nx = 5",
            "pods.idle_timeout: a pod may not have the name of a key of [pod]; "
            "did you mean pod.idle_timeout?",
        ),
        (
            "[pods]\nlease_file = 'x'",
            "pods.lease_file: a pod may not have the name of a key of [pod]; did you mean pod.lease_file?",
        ),
        (
            "[pods]\na = 5",
            "pods.a: must be a section, [pods.a], with keys (a variable is GPUGATE_PODS__<NAME>__<KEY>)",
        ),
        ("[pods.A]", 'pods.A: its name must be of a-z and 0-9, with single "-" between them'),
        ("[pods.a--b]", 'pods.a--b: its name must be of a-z and 0-9, with single "-" between them'),
        (
            "[pods.a-b]\n[pods.a_b]",
            'pods.a_b: its name must be of a-z and 0-9, with single "-" between them; '
            "in a variable it would be the same as a-b",
        ),
        ("[[pods]]\nname = 'a'", "pods: must be sections, [pods.<name>]"),
        (
            "[comfyui]\npod = 'b'\n[pods.a]",
            'comfyui.pod: must be the name of a pod (a), is "b" (or GPUGATE_COMFYUI__POD)',
        ),
        (
            "[[schedule]]\ncron = '0 8 * * *'\npod = 'main'\n[pods.a]",
            'schedule[0].pod: must be the name of a pod (a), is "main"',
        ),
        (
            "[[schedule]]\ncron = '0 8 * * *'\npod = 'b'",
            'schedule[0].pod: must be the name of a pod (main), is "b"',
        ),
    ],
)
def test_what_may_not_be(tmp_path: Path, text: str, said: str) -> None:
    """One line each, as for the keys of `[pod]`."""
    assert [f"gpugate.toml: {said}"] == file_complaints(tmp_path, text)


def test_wrong_variables() -> None:
    """They are named, not the key alone."""
    assert [
        "GPUGATE_PODS__A__IDLE_TIMOUT: pods.a.idle_timout: unknown key; "
        "did you mean pods.a.idle_timeout (GPUGATE_PODS__A__IDLE_TIMEOUT)?"
    ] == env_complaints({"GPUGATE_PODS__A__IDLE_TIMOUT": "5"})
    assert [
        "GPUGATE_PODS__A: pods.a: must be a section, [pods.a], with keys "
        "(a variable is GPUGATE_PODS__<NAME>__<KEY>)"
    ] == env_complaints({"GPUGATE_PODS__A": "5"})
    assert [
        "GPUGATE_PODS_A_IDLE_TIMEOUT: unknown variable; "
        "did you mean GPUGATE_PODS__<NAME>__<KEY> (two underscores)?"
    ] == env_complaints({"GPUGATE_PODS_A_IDLE_TIMEOUT": "5"})


def test_a_pod_without_a_provider(tmp_path: Path) -> None:
    """Each that has none is named; a provider in `[pod]` is enough for all."""
    path = write(tmp_path, f'[auth]\nsecret = "{SECRET}"\n[pods.a]\n[pods.b]\nprovider = "demo"\n')

    (line,) = complaints(path)
    assert line.startswith("gpugate.toml: pods.a.provider: is missing: name a provider")
    assert [] == complaints(path, {"GPUGATE_POD__PROVIDER": "demo"})


def test_faults_of_providers_sections(tmp_path: Path) -> None:
    """A key is named where it is given, or where it should be; a fault of all pods is told once."""
    text = """
    [pods.a]
    provider = "runpod"
    [pods.a.runpod]
    pod_id = "a"
    ollama_port = 0
    tmeout = 5
    [pods.b]
    provider = "runpod"
    [pods.b.runpod]
    pod_id = "b"
    [providers.runpod]
    api_key = "k"
    comfyui_port = 0
    [pods.c]
    provider = "vastai"
    [pods.c.vastai]
    instance_id = 5
    [pods.d]
    provider = "vastai"
    """
    assert [
        "pods.a.runpod.ollama_port",
        "providers.runpod.comfyui_port",
        "pods.a.runpod.tmeout",
        "pods.c.vastai.api_key",
        "providers.vastai.api_key",
    ] == [line.split(": ")[1] for line in file_complaints(tmp_path, text, config_of=config_of)]


def test_a_provider_that_is_not_installed(tmp_path: Path) -> None:
    """Named where the provider is, and a section below a pod that means none."""
    text = "[pod]\nprovider = 'runpd'\n[pods.a]\nprovider = 'vast'\n[pods.b]\n[pods.a.runpood]\npod_id = 'x'"

    assert [
        "gpugate.toml: pods.a.provider: no provider 'vast' is installed",
        "gpugate.toml: pods.a.runpood: unknown section; no such provider is installed",
        "gpugate.toml: pod.provider: no provider 'runpd' is installed",
    ] == complaints(write(tmp_path, text), {"GPUGATE_AUTH__SECRET": SECRET}, config_of=config_of)


@pytest.mark.parametrize(
    ("provider", "keys", "named"),
    [
        ("runpod", 'pod_id = "x"', "pod_id"),
        ("vastai", "instance_id = 5", "instance_id"),
        ("local", 'ollama_url = "http://127.0.0.1:1"', "ollama_url"),
        ("runpod", 'mode = "ephemeral"\nimage = "i"\ngpus = ["g"]\ninstance = "home"', "instance"),
    ],
)
def test_two_pods_that_are_one_machine(tmp_path: Path, provider: str, keys: str, named: str) -> None:
    """Two lifecycles may not fight for it, wherever the key stands."""
    key = "" if provider == "local" else f'[providers.{provider}]\napi_key = "k"\n'
    for_a = f'{key}[pod]\nprovider = "{provider}"\n[pods.a.{provider}]\n{keys}\n'
    for_both = f'[pod]\nprovider = "{provider}"\n[providers.{provider}]\n{key and "api_key = 1"}\n{keys}\n'
    for_both = for_both.replace("api_key = 1", 'api_key = "k"') + "[pods.a]\n[pods.b]\n"
    said = "is that of the pod a, too: each pod needs one of its own"
    env = {"GPUGATE_AUTH__SECRET": SECRET}

    own = for_a + f"[pods.b.{provider}]\n{keys}\n"
    assert [f"gpugate.toml: pods.b.{provider}.{named}: {said}"] == complaints(
        write(tmp_path, own), env, config_of=config_of
    )
    assert [f"gpugate.toml: providers.{provider}.{named}: {said}"] == complaints(
        write(tmp_path, for_both), env, config_of=config_of
    )


def test_pods_that_are_different_machines(tmp_path: Path) -> None:
    """Their ids differ; those that are made differ by `instance`."""
    text = """
    [pod]
    provider = "runpod"
    [providers.runpod]
    api_key = "k"
    [pods.a.runpod]
    pod_id = "a"
    [pods.b.runpod]
    pod_id = "b"
    [pods.c.runpod]
    mode = "ephemeral"
    image = "i"
    gpus = ["g"]
    [pods.d.runpod]
    mode = "ephemeral"
    image = "i"
    gpus = ["g"]
    instance = "other"
    """
    env = {"GPUGATE_AUTH__SECRET": SECRET}
    assert [] == complaints(write(tmp_path, text), env, config_of=config_of)


@attrs.frozen
class Scaled:
    """A Config that names a workload of a cluster."""

    name: str = "ollama"
    namespace: str = "default"
    kind: str = "Deployment"
    context: str = ""
    mode: str = "scale"
    ollama_url: str = "http://{node}:{port}"


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ("", ["pods.b.cluster.name"]),
        ('namespace = "other"', []),
        ('kind = "StatefulSet"', []),
        ('mode = "ephemeral"', []),
    ],
)
def test_workloads_of_a_cluster(tmp_path: Path, keys: str, refused: list[str]) -> None:
    """The same name is the same one only in the same place; what is made for each session is none."""
    text = f'[pod]\nprovider = "cluster"\n[pods.a]\n[pods.b.cluster]\nname = "ollama"\n{keys}\n'
    lines = complaints(write(tmp_path, text), {"GPUGATE_AUTH__SECRET": SECRET}, config_of=lambda _: Scaled)

    assert refused == [line.split(": ")[1] for line in lines]


def test_a_pattern_of_addresses_is_no_machine(tmp_path: Path) -> None:
    """Pods may share a pattern that is filled in for each of them."""
    text = '[pod]\nprovider = "cluster"\n[providers.cluster]\nname = ""\n[pods.a]\n[pods.b]\n'

    assert [] == complaints(
        write(tmp_path, text), {"GPUGATE_AUTH__SECRET": SECRET}, config_of=lambda _: Scaled
    )


def test_what_may_surprise_in_one_of_them(tmp_path: Path) -> None:
    """A warning names the key where it is given, and one of all pods comes once."""
    text = "[pod]\nstart_timeout = '11m'\n[pods.a]\nidle_timeout = 15\n[pods.b]\nmax_session = 60\n"
    found = dict(warnings(load_settings(write(tmp_path, text), ENOUGH)))

    assert ["pods.a.idle_timeout", "pod.start_timeout", "pods.b.max_session"] == [*found]
    assert "than pod.warmup_timeout" in found["pods.b.max_session"]


def test_named_pods_have_no_secret_in_their_repr() -> None:
    """Neither a provider's section nor a lease."""
    pod = PodSettings(pod=Pod(lease="s" * 16), providers={"runpod": {"api_key": "hidden-key"}})

    assert not any(word in repr(pod) for word in ("ssss", "hidden-key"))
    assert attrs.evolve(pod) == pod


def test_the_how_to(tmp_path: Path) -> None:
    """What docs/howto/several-pods.md says works as it is there."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "several-pods.md").read_text(encoding="utf-8")
    for key in ("runpod.key", "vastai.key"):
        write(tmp_path, "secret", key)
    whole, two = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    env = {"HOME": "/home/nobody", "GPUGATE_AUTH__SECRET": SECRET}

    settings = load_settings(write(tmp_path, whole), env, config_of=config_of)
    assert ["home", "large", "pictures"] == [pod.name for pod in settings.pods]
    settings = load_settings(write(tmp_path, two), env, config_of=config_of)
    ids = [provider_config(settings, "runpod", RunPodConfig, pod).pod_id for pod in settings.pods]
    assert ["k3x9v2m7q1", "p8d2w6z4h5"] == ids


@pytest.mark.parametrize(
    ("pod", "line"),
    [
        (
            'replicas = "1..4"',
            "gpugate.toml: pod.replicas: the provider runpod has no replicas (or GPUGATE_POD__REPLICAS)",
        ),
        (
            "replicas = 2",
            "gpugate.toml: pod.replicas: the provider runpod has no replicas (or GPUGATE_POD__REPLICAS)",
        ),
        (
            'replicas = "2..9"\nprovider = "vastai"',
            "gpugate.toml: pod.replicas: the provider vastai has at most 8 replicas"
            " (or GPUGATE_POD__REPLICAS)",
        ),
        (
            'replicas = "4..2"',
            'gpugate.toml: pod.replicas: must be a number or a range, such as "2" or "1..4", is "4..2"'
            " (or GPUGATE_POD__REPLICAS)",
        ),
    ],
)
def test_replicas_that_no_provider_has(tmp_path: Path, pod: str, line: str) -> None:
    """The complaint names the key; a number may be given as one."""
    text = f"[pod]\n{pod}\n"
    most = {"runpod": 1, "vastai": 8}
    env = {} if "provider" in pod else {"GPUGATE_POD__PROVIDER": "runpod"}
    env |= {"GPUGATE_PROVIDERS__RUNPOD__API_KEY": "k", "GPUGATE_PROVIDERS__RUNPOD__POD_ID": "p"}
    env |= {"GPUGATE_PROVIDERS__VASTAI__API_KEY": "k", "GPUGATE_PROVIDERS__VASTAI__INSTANCE_ID": "1"}

    found = complaints(
        write(tmp_path, text),
        {"GPUGATE_AUTH__SECRET": SECRET, "HOME": "/home/nobody", **env},
        config_of=config_of,
        max_replicas_of=most.__getitem__,
    )

    assert [line] == found


def test_replicas_that_a_provider_has(tmp_path: Path) -> None:
    """They are in the pod's settings."""
    env = {"GPUGATE_AUTH__SECRET": SECRET, "HOME": "/home/nobody", "GPUGATE_PROVIDERS__RUNPOD__API_KEY": "k"}
    env |= {"GPUGATE_PROVIDERS__RUNPOD__POD_ID": "p"}
    text = '[pod]\nprovider = "runpod"\nreplicas = 3\nmax_hourly_rate = 2.5'

    settings = load_settings(write(tmp_path, text), env, config_of=config_of, max_replicas_of=lambda name: 3)

    assert ("3", Decimal("2.5")) == (settings.pod.replicas, settings.pod.max_hourly_rate)


SPOT = """
[auth]
secret = "0123456789abcdef0123456789abcdef"
[pod]
provider = [{name = "vastai", spot = true}, "demo"]
[providers.vastai]
api_key = "k"
mode = "ephemeral"
max_price = 0.5
"""


def test_a_provider_that_is_rented_as_spot(tmp_path: Path) -> None:
    """An entry of the list may be a table; what it says is a key of the provider's section."""
    settings = load_settings(write(tmp_path, SPOT), {"HOME": "/h"})
    assert ("vastai", "demo") == settings.pod.provider
    assert provider_config(settings, "vastai", VastConfig).spot
    assert 0.5 == provider_config(settings, "vastai", VastConfig).max_price


def test_spot_for_one_pod_alone(tmp_path: Path) -> None:
    """A pod's own list says it for that pod."""
    text = SPOT.replace('[{name = "vastai", spot = true}, "demo"]', '["vastai"]')
    more = (
        '[pods.a]\n[pods.b]\nprovider = [{name = "vastai", spot = true}]\n[pods.b.vastai]\ninstance = "b"\n'
    )
    settings = load_settings(write(tmp_path, text + more), {"HOME": "/h"})
    spots = [provider_config(settings, "vastai", VastConfig, pod).spot for pod in settings.pods]
    assert [False, True] == spots


def test_an_entry_with_another_key(tmp_path: Path) -> None:
    """It is named."""
    found = complaints(write(tmp_path, SPOT.replace("spot = true", "spots = true")))
    assert 1 == len(found)
    assert "pod.provider: spots is no key of an entry; there is spot" in found[0]


def test_spot_of_a_provider_that_has_none(tmp_path: Path) -> None:
    """The provider's own complaint about a key that it does not know."""
    text = SPOT.replace('{name = "vastai", spot = true}, "demo"', '{name = "demo", spot = true}')
    found = complaints(write(tmp_path, text), config_of=lambda name: registry.find(name).Config)
    assert any("providers.demo.spot: unknown key" in line for line in found)
