"""Lists of tables such as `[[wake]]`: how they are read, and how a complaint names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpugate.config import load_settings
from tests.config.support import ENOUGH, file_complaints, write


def test_rules_in_their_order(tmp_path: Path) -> None:
    """Each table is a rule."""
    text = '[[wake]]\nname = "first"\nusers = ["a*"]\nallow = true\n[[wake]]\nhours = "Sat,Sun"\n'
    rules = load_settings(write(tmp_path, text), ENOUGH).wake

    assert ["first", ""] == [rule.name for rule in rules]
    assert (("a*",), True, "") == (rules[0].users, rules[0].allow, rules[0].hours)
    assert ((), False, "Sat,Sun") == (rules[1].users, rules[1].allow, rules[1].hours)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '[[wake]]\n[[wake]]\nhours = "all day"',
            'gpugate.toml: wake[1].hours: must be hours such as "Mon-Fri 08:00-18:00", "Sat,Sun" or '
            '"22:00-06:00", several with ";" between, is "all day"',
        ),
        (
            '[[wake]]\ntimezone = "Berlin"',
            'gpugate.toml: wake[0].timezone: must be the name of a time zone, such as "Europe/Berlin", '
            'is "Berlin"',
        ),
        ('[[wake]]\nusers = "bob"', 'gpugate.toml: wake[0].users: must be a list, is "bob"'),
        ("[[wake]]\nusers = [7]", "gpugate.toml: wake[0].users[0]: must be text, is 7"),
        (
            '[[wake]]\nhour = "Sat"',
            "gpugate.toml: wake[0].hour: unknown key; did you mean wake[0].hours?",
        ),
        (
            "[[wake]]\nzzz = 1",
            "gpugate.toml: wake[0].zzz: unknown key; wake[0] has name, allow, users, models, paths, agents, "
            "hours, timezone",
        ),
        (
            "[wake]\nallow = true",
            "gpugate.toml: wake: must be tables in the file, each with the head [[wake]]",
        ),
        ("wake = 3", "gpugate.toml: wake: must be a list, is 3"),
        ("wake = [3]", "gpugate.toml: wake[0]: must be a table, is 3"),
    ],
)
def test_a_complaint_names_the_table(tmp_path: Path, text: str, complaint: str) -> None:
    """By its index and key, in one line."""
    assert [complaint] == file_complaints(tmp_path, text)


def test_a_variable_cannot_give_a_rule(tmp_path: Path) -> None:
    """It is not ignored in silence, whether the file has rules or not."""
    line = "GPUGATE_WAKE__HOURS: must be tables in the file, each with the head [[wake]]"
    given = {"GPUGATE_WAKE__HOURS": "Sat"}

    assert [line] == file_complaints(tmp_path, "", given)
    assert [line] == file_complaints(tmp_path, "[[wake]]\n", given)
