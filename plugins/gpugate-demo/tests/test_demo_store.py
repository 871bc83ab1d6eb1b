"""Models on disk and in memory, and what a keep_alive means."""

from datetime import UTC, datetime, timedelta

import pytest
from gpugate_demo.store import DEFAULT_MODELS, FOREVER_S, Store, guessed, keep_alive_s, valid_name
from hypothesis import given
from hypothesis import strategies as st


class TestKeepAlive:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            (0, 0),
            (-1, FOREVER_S),
            (90, 90),
            (0.5, 0.5),
            ("0", 0),
            ("0s", 0),
            ("5m", 300),
            ("1h30m", 5400),
            ("-1m", FOREVER_S),
            ("1.5s", 1.5),
            ("250ms", 0.25),
        ],
    )
    def test_what_go_understands(self, value, seconds):
        """Numbers are seconds, texts are Go durations, negative is for ever."""
        assert seconds == keep_alive_s(value)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("-1", 'time: missing unit in duration "-1"'),
            ("10", 'time: missing unit in duration "10"'),
            ("soon", 'time: invalid duration "soon"'),
            ("", 'time: invalid duration ""'),
            ([], "Unsupported type: 'list'"),
            (True, "Unsupported type: 'bool'"),
        ],
    )
    def test_what_go_refuses(self, value, text):
        """A bare "-1" is refused although the number -1 is fine (facts 1.3)."""
        with pytest.raises(ValueError) as refused:
            keep_alive_s(value)

        assert text == str(refused.value)

    @given(st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none())
    def test_anything(self, value):
        """Seconds or a ValueError, nothing else."""
        try:
            seconds = keep_alive_s(value)
        except ValueError:
            return

        assert seconds is None or seconds >= 0


class TestNames:
    @pytest.mark.parametrize("name", ["llama3.2:3b", "me/model:v1", "host/me/model", "_x", "a"])
    def test_good(self, name):
        assert valid_name(name)

    @pytest.mark.parametrize("name", ["", "two words", "a:b:c", "/x", "a/../b c", "x" * 300, "é"])
    def test_bad(self, name):
        assert not valid_name(name)

    def test_digests(self):
        """64 hexadecimal characters each: the command line cuts 12 off and panics on shorter ones."""
        digests = {model.digest for model in DEFAULT_MODELS}

        assert len(DEFAULT_MODELS) == len(digests)
        assert {64} == {len(digest) for digest in digests}


class TestStore:
    def test_latest(self):
        """A name without a tag means the latest, and case does not matter."""
        store = Store.of(DEFAULT_MODELS)

        assert store.find("llava") is store.find("LLaVA:latest")
        assert store.find("llama3.2") is None

    def test_loading_and_unloading(self):
        store = Store.of(DEFAULT_MODELS)
        model = DEFAULT_MODELS[0]

        assert [True, False] == [store.load(model, 60), store.load(model, 60)]
        store.unload(model)
        assert [] == store.loaded()

    def test_time_is_up(self):
        """A model leaves memory when its keep_alive is over; one kept for ever stays."""
        store = Store.of(DEFAULT_MODELS)
        store.load(DEFAULT_MODELS[0], 60)
        store.load(DEFAULT_MODELS[1], FOREVER_S)
        later = datetime.now(UTC) + timedelta(seconds=61)

        assert [DEFAULT_MODELS[1]] == [loaded.model for loaded in store.loaded(later)]

    def test_a_copy_and_its_end(self):
        store = Store.of(DEFAULT_MODELS)
        store.copy(DEFAULT_MODELS[0], "mine")

        assert "mine:latest" == store.listed()[0].name
        assert [True, False] == [store.remove("mine"), store.remove("mine")]

    def test_guesses(self):
        """A name that is new here gets the abilities that it suggests."""
        assert ("embedding",) == guessed("all-minilm").capabilities
        assert "vision" in guessed("llava:34b").capabilities
        assert "tools" in guessed("qwen3").capabilities
