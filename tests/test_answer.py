"""The picture of an answer, as it is read back."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from sweeps.answer import COLUMNS, WIDTH, picture

SVG = "{http://www.w3.org/2000/svg}"


def test_each_accepted_draft_is_marked_where_it_stands():
    drawn = ElementTree.fromstring(picture("One «two» three\n«1 < 2» & 3", "5 tokens"))
    lines = [text.text for text in drawn.iter(f"{SVG}text")]
    assert lines == ["One two three", "1 < 2 & 3", "5 tokens"]
    marks = [box for box in drawn.iter(f"{SVG}rect") if box.get("class") == "draft"]
    assert [round(float(box.get("width", "")) / WIDTH) for box in marks] == [3, 5]
    (first, second), margin = ([float(box.get("x", "")) for box in marks]), float(drawn.find(f"{SVG}text").get("x"))  # type: ignore[union-attr]
    assert (round((first - margin) / WIDTH), second) == (4, margin)


def test_long_lines_are_wrapped_and_nothing_is_lost():
    words = "word " * 60
    drawn = ElementTree.fromstring(picture(f"«{words}»", "note"))
    *lines, _ = [text.text or "" for text in drawn.iter(f"{SVG}text")]
    assert max(map(len, lines)) <= COLUMNS
    assert re.sub(r"\s+", "", "".join(lines)) == words.replace(" ", "")
