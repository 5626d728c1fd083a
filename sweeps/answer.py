"""A picture of an answer, with the accepted drafts marked.

    uv run launch/run.py job=generate prompt="…" 2>stats.txt | uv run python -m sweeps.answer stats.txt > answer.svg

What job=generate writes into a pipe has accepted drafts between « and »; the last line of `stats.txt` is its speed.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

MARKS = ("«", "»")
COLUMNS = 88
# Of a monospaced glyph, in units of the picture; a browser's fonts differ by a little, so each line is fitted to it.
WIDTH, LINE, MARGIN = 8.4, 21, 22
STYLE = """
text {
  font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  fill: #1f2328; white-space: pre
}
.page { fill: #ffffff; stroke: #d1d9e0 } .draft { fill: #fde3cc } .note { fill: #59636e; font-size: 13px }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117; stroke: #3d444d } .draft { fill: #6b3a12 } .note { fill: #9198a1 }
}
"""


def picture(answer: str, note: str) -> str:
    """The SVG of an answer as job=generate writes it, with a line about it."""
    lines = [line for whole in _marked_lines(answer) for line in _wrapped(whole)]
    height = 2 * MARGIN + LINE * (len(lines) + 2)
    width = 2 * MARGIN + COLUMNS * WIDTH
    plain = escape("".join(letter for line in lines for letter, _ in line))
    body = [f'<rect class="page" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1}" rx="8"/>']
    for row, line in enumerate(lines):
        top = MARGIN + row * LINE
        for begin, end in _runs([accepted for _, accepted in line]):
            x, size = MARGIN + begin * WIDTH, (end - begin) * WIDTH
            body.append(
                f'<rect class="draft" x="{x:.1f}" y="{top + 1}" width="{size:.1f}" height="{LINE - 3}" rx="3"/>'
            )
        if line:
            text = escape("".join(letter for letter, _ in line))
            fitted = f'textLength="{len(line) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
            body.append(f'<text x="{MARGIN}" y="{top + 15}" {fitted} xml:space="preserve">{text}</text>')
    body.append(f'<text class="note" x="{MARGIN}" y="{height - MARGIN}">{escape(note)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" role="img" aria-labelledby="title desc"><title id="title">An answer</title>'
        f'<desc id="desc">{plain}. {escape(note)}</desc><style>{STYLE}</style>{"".join(body)}</svg>\n'
    )


def _marked_lines(answer: str) -> Iterator[list[tuple[str, bool]]]:
    """Lines of letters, each with whether it belongs to an accepted draft."""
    line: list[tuple[str, bool]] = []
    accepted = False
    for letter in answer.rstrip("\n"):
        if letter in MARKS:
            accepted = letter == MARKS[0]
        elif letter == "\n":
            yield line
            line = []
        else:
            line.append((letter, accepted))
    yield line


def _wrapped(line: list[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    text, at = "".join(letter for letter, _ in line), 0
    for part in textwrap.wrap(text, COLUMNS, drop_whitespace=False) or [""]:
        yield line[at : at + len(part)]
        at += len(part)


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    begin = None
    for place, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = place
        elif not flag and begin is not None:
            yield begin, place
            begin = None


if __name__ == "__main__":
    answer = sys.stdin.read()  # whose end is that of what writes the other file
    said = Path(sys.argv[1]).read_text(encoding="utf-8").strip().splitlines()
    print(picture(answer, f"marked: accepted drafts; {said[-1]}"), end="")
