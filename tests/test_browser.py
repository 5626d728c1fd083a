"""A sweep's report as a browser shows it: sorting, filtering, its two themes, a phone, and without its script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NAMES, Page, browser, installed
from synthetic_sweep import grid, page_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed() is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the path"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "report.html"
    path.write_text(page_of(grid(), "Which γ?"))
    return path


@pytest.fixture(scope="module")
def shown() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(shown: Page, report: Path) -> Page:
    shown.ask("Emulation.setScriptExecutionDisabled", value=False)
    shown.theme("light")
    shown.size(1100, 900)
    shown.open(report)
    return shown


SPEEDUPS = """[...document.querySelectorAll('.table')[0].querySelectorAll('tbody tr:not([hidden])')]
    .map(row => parseFloat(row.cells[COLUMN].textContent))"""
COLUMN = (
    "[...document.querySelectorAll('.table')[0].querySelectorAll('th')].findIndex(h => /speedup/.test(h.textContent))"
)


def test_a_click_on_a_heading_sorts_and_another_turns_it_around(page):
    column = page.value(COLUMN)
    speedups = SPEEDUPS.replace("COLUMN", str(column))
    before = page.value(speedups)
    assert before != sorted(before)
    button = f"document.querySelectorAll('.table')[0].querySelectorAll('th button')[{column}]"
    page.value(f"{button}.click()")
    assert page.value(speedups) == sorted(before)
    page.value(f"{button}.click()")
    assert page.value(speedups) == sorted(before, reverse=True)
    assert page.value(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"
    assert page.errors == []


def test_numbers_with_units_sort_as_numbers(page):
    table = "[...document.querySelectorAll('.table')].find(t => t.textContent.includes('The models'))"
    order = f"[...{table}.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
    page.value(f"[...{table}.querySelectorAll('th button')].find(b => /parameters/.test(b.textContent)).click()")
    assert page.value(order) == ["gecko", "otter", "bison"], "2.96M, 9.7M, 29.8M"


def test_what_is_typed_leaves_rows_and_marks_that_hold_all_words(page):
    page.value("document.getElementById('filter').focus()")
    page.ask("Input.insertText", text="router tandem tau=0.8")
    first = "document.querySelector('.charts')"
    left = page.value(f"[...{first}.querySelectorAll('.mark:not(.dim) title')].map(t => t.textContent)")
    assert len(left) == 3
    assert all("tandem_distil" in said and "decode=router" in said and "tau=0.8" in said for said in left)
    page.value("document.getElementById('filter').select()")
    page.ask("Input.insertText", text="survival gecko")
    rows = page.value(
        "[...document.querySelectorAll('.table')[0].querySelectorAll('tbody tr:not([hidden])')].map(r => r.textContent)"
    )
    assert len(rows) == 9
    assert all("survival" in row and "gecko" in row for row in rows)
    assert page.errors == []


def test_dark_is_dark_with_marks_that_can_be_told_apart(page):
    look = """(() => { const fill = kind => getComputedStyle(document.querySelector(kind)).fill;
        return [getComputedStyle(document.body).backgroundColor, ...[0, 4, 8].map(i => fill('.cell.h' + i))] })()"""
    light = page.value(look)
    page.theme("dark")
    dark = page.value(look)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert len(set(dark)) == 4
    assert brightness(light[0]) > 200 > 60 > brightness(dark[0])
    assert brightness(dark[1]) < brightness(dark[2]) < brightness(dark[3]), "more stands out more"
    assert brightness(light[1]) > brightness(light[2]) > brightness(light[3])
    page.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.value(look)[1:] == light[1:], "paper is white"
    page.ask("Emulation.setEmulatedMedia", media="", features=[])


def brightness(colour: str) -> float:
    """Of `rgb(r, g, b)`."""
    red, green, blue = (float(part) for part in colour.strip("rgba()").split(",")[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_page_and_no_ticks_overlap(page, width):
    page.size(width, 900)
    assert page.value("document.documentElement.scrollWidth") <= width
    overlapping = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const texts = [...svg.querySelectorAll(".tick, .in, .label")];
        const boxes = texts.map(t => [t.getBoundingClientRect(), t.textContent]);
        return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([b]) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2
        ).map(([, y]) => `${svg.querySelector('title').textContent}: ${x} on ${y}`)) })"""
    assert page.value(overlapping) == []


def test_without_its_script_the_page_has_all_tables_and_figures(page, report):
    with_script = page.value("[document.querySelectorAll('tbody tr').length, document.querySelectorAll('svg').length]")
    page.ask("Emulation.setScriptExecutionDisabled", value=True)
    page.open(report)
    # Chromium evaluates what a debugger asks for all the same.
    assert (
        page.value("[document.querySelectorAll('tbody tr').length, document.querySelectorAll('svg').length]")
        == with_script
    )
    assert page.value("document.querySelector('.filter').hidden"), "what does nothing is not shown"
    assert page.value("document.querySelectorAll('th button').length") == 0
    assert page.errors == []
