"""The recording of a cold start that README.md shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docs.record import COLUMNS, COMMANDS, Piece, cast_of, pieces_of, svg_of

ROOT = Path(__file__).parents[2]
CAST = ROOT / "docs" / "images" / "cold-start.cast"


def test_the_recording_in_the_repository() -> None:
    """It shows all commands, the wait, the stop and the price, and no token; the picture is of it."""
    header, *lines = map(json.loads, CAST.read_text().splitlines())
    outputs = [(at, text) for at, kind, text in lines if kind == "o"]
    assert (2, COLUMNS) == (header["version"], header["width"])
    assert cast_of(outputs) == CAST.read_text()
    shown = "".join(text for _, text in outputs)
    for command in COMMANDS:
        assert f"$ {command}" in shown
    assert re.search(r"it waited \d+\.\d s for the pod", shown)
    assert re.search(r'"cause":"idle","seconds":[\d.]+,"cost":"0\.00\d\d"', shown)
    assert "eyJ" not in shown
    assert svg_of(outputs) == CAST.with_suffix(".svg").read_text()
    assert "docs/images/cold-start.svg" in (ROOT / "README.md").read_text()


def test_a_terminal() -> None:
    """Colours, line ends, and lines that are longer than it is wide."""
    outputs = [(0.0, "$ a"), (1.5, "b\r\n\x1b[1;32mREADY\x1b[0m now"), (2.0, "\r\n" + "x" * (COLUMNS + 1))]

    assert [
        Piece(0.0, 0, 0, "$ a", ""),
        Piece(1.5, 0, 3, "b", ""),
        Piece(1.5, 1, 0, "READY", ' font-weight="bold" fill="#3c6"'),
        Piece(1.5, 1, 6, "now", ""),
        Piece(2.0, 2, 0, "x" * COLUMNS, ""),
        Piece(2.0, 3, 0, "x", ""),
    ] == pieces_of(outputs)
    assert "&lt;b&gt;" in svg_of([(0.0, "<b>")])
