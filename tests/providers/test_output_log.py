"""The state file and the log of the output: damaged, unreadable, full."""

from __future__ import annotations

import pytest

from gpugate.providers.supervisor import OutputLog, read_state


class TestState:
    def test_none(self, tmp_path):
        """No file is no state."""
        assert read_state(tmp_path / "pod.json") is None
        assert read_state(tmp_path / "no" / "pod.json") is None

    @pytest.mark.parametrize("text", ["", "{", "[]", "\0\0\0", "7"])
    def test_damaged(self, tmp_path, text):
        """A file that makes no sense is a state that tells nothing, which is not the same as none."""
        (tmp_path / "pod.json").write_text(text)

        assert {} == read_state(tmp_path / "pod.json")

    def test_unreadable(self, tmp_path):
        """ "I could not look" is an error."""
        with pytest.raises(OSError, match="Is a directory"):
            read_state(tmp_path)


class TestLog:
    def test_it_is_bounded(self, tmp_path):
        """A full file becomes the older one; there are never more than two."""
        log = OutputLog(str(tmp_path / "pod.log"), limit=100)
        for number in range(100):
            log.write(b"%09d\n" % number)
        log.close()

        assert ["pod.log", "pod.log.1"] == sorted(file.name for file in tmp_path.iterdir())
        assert (tmp_path / "pod.log.1").read_bytes().endswith(b"000000099\n")

    def test_a_file_of_an_earlier_run(self, tmp_path):
        """It is continued, and its size counts."""
        (tmp_path / "pod.log").write_bytes(b"x" * 99)
        log = OutputLog(str(tmp_path / "pod.log"), limit=100)
        log.write(b"yy")
        log.close()

        assert 101 == (tmp_path / "pod.log.1").stat().st_size

    def test_nowhere_to_write(self, tmp_path):
        """Without a file the last line is still known."""
        log = OutputLog(str(tmp_path / "no" / "pod.log"))
        log.write(b"Error: no space left\n\n")
        log.close()

        assert log.last_line == "Error: no space left"

    @pytest.mark.parametrize(
        ("said", "last"),
        [
            (b"", ""),
            (b"one\ntwo", "two"),
            (b"one\r\ntwo\r\n \r\n", "two"),
            (b"\x1b[31mred\x1b[0m\x07\n", "[31mred[0m"),
            (b"caf\xe9\n", "caf\ufffd"),
            (b"x" * 5000, "x" * 300),
        ],
    )
    def test_last_line(self, tmp_path, said, last):
        """The last one with something on it, without what a terminal would obey."""
        log = OutputLog(str(tmp_path / "pod.log"))
        log.write(said)
        log.close()

        assert last == log.last_line
