"""The pictures of a sweep: which there are, that each has its table, and what the page of a large sweep costs."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from synthetic_sweep import grid, page_of
from test_report import Page

from sweeps import over_points
from sweeps.figure import Figure
from sweeps.point import Curve, Point
from sweeps.points import answer, answer_figures
from sweeps.runs_table import runs
from sweeps.tables import SECTIONS, to_text
from tandem.measure import theory


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return grid()


def figures_of(points: list[Point]) -> dict[str, Figure]:
    made = [figure for section in SECTIONS for draw in section.over_points for figure in draw(points)]
    titles = [figure.title for figure in made]
    assert len(set(titles)) == len(titles)
    return dict(zip(titles, made, strict=True))


def marks(svg: str, kind: str) -> list[str]:
    return re.findall(rf'<(?:rect|circle) class="mark {kind}[^"]*"[^>]*><title>(.*?)</title>', svg)


def test_the_answer_is_a_map_of_the_two_longest_axes_for_each_drafter_and_rule(points):
    made = answer_figures(points)
    assert [figure.title for figure in made] == [
        f"Decoding speedup, {name}, decode={rule}"
        for rule in ("router", "survival")
        for name in ("gecko_distil", "tandem_distil")
    ]
    cells = [said for figure in made for said in marks(figure.svg, "cell")]
    assert len(cells) == 2 * len(points)
    best = max(points, key=lambda p: p.results["speed"][2]["speedup_decode"])
    framed = marks("".join(figure.svg for figure in made), r"cell h\d framed")
    assert framed == [f"tandem_distil, {best.place}: {best.results['speed'][2]['speedup_decode']:.2f}×"]
    told = to_text(made[1].table)
    assert "block length γ ↓" in told
    assert f"{points[0].results['speed'][2]['speedup_decode']:.2f}×" in told


def test_a_question_names_the_table_that_answers_it(points):
    differing = [
        replace(p, results={**p.results, "agreement": [{**row, "total_variation": row["total_variation"] + 0.01 * i}
                                                       for row in p.results["agreement"]]})
        for i, p in enumerate(points)
    ]  # fmt: skip
    told = answer(differing, "agreement")
    assert told is not None
    assert told.key == "agreement"
    (best,) = [row for row in told.rows if row["best"]]
    assert best["total_variation"] == min(row["total_variation"] for row in told.rows)
    assert answer_figures(differing, "agreement")[0].title.startswith("Total variation")
    assert answer(differing).key == answer(differing, "nothing that is measured").key == "speed"


def test_sets_of_prompts_have_maps_of_their_own(points):
    titles = [title for title in figures_of(points) if title.startswith("Decoding speedup")]
    for category in ("code", "news"):
        assert f"Decoding speedup, tandem_distil, {category}, decode=router" in titles


def test_what_is_not_there_is_an_empty_cell_and_no_value(points):
    failed = [replace(points[0], results=None, state="failed"), *points[1:]]
    (empty,) = marks(answer_figures(failed)[1].svg, "cell empty")
    assert empty == "tandem_distil, decode=router gamma=2 tau=0.2: no result"


def test_one_axis_is_a_line_and_without_numbers_bars(points):
    (line,) = answer_figures(grid(taus=[0.5], rules=["router"])[:3])
    assert line.title == "Decoding speedup by γ"
    assert len(marks(line.svg, "dot")) == 6
    by_rule = [replace(p, axes={"decode": p.axes["decode"]}) for p in grid([4], [0.5])]
    (bars,) = answer_figures(by_rule)
    assert len(marks(bars.svg, "bar")) == 4


def test_seeds_are_averaged_over(points):
    twice = [replace(p, axes={**p.axes, "seed": seed}) for p in points for seed in (0, 1)]
    assert [f.title for f in answer_figures(twice)] == [f.title for f in answer_figures(points)]
    assert "Means over 2 seeds." in answer_figures(twice)[0].note


def test_tokens_stand_beside_the_theorys(points):
    figure = figures_of(points)["Tokens per primary run by γ, tandem_distil, decode=router"]
    columns = {column.title: column for column in figure.table.columns}
    assert set(columns) == {"block length γ", "τ = 0.2", "τ = 0.5", "τ = 0.8", "every block full"}
    expected = [theory.expected_tokens([0.7] * gamma) for gamma in (2, 4, 8)]
    assert [row[columns["every block full"].key] for row in figure.table.rows] == pytest.approx(expected)


def test_the_parts_of_a_tokens_time_add_up_to_what_was_measured(points):
    figure = figures_of(points)["Where the time of a token goes, by γ, tandem_distil"]
    names = {column.key: column.title for column in figure.table.columns}
    for row, gamma in zip(figure.table.rows[1:], (2, 4, 8), strict=True):
        parts = {names[key]: value for key, value in row.items()}
        fastest = max(
            (p.results["speed"][2] for p in points if p.axes["gamma"] == gamma), key=lambda r: r["speedup_decode"]
        )
        assert parts["draft"] + parts["verify"] + parts["rest"] == pytest.approx(
            1000 / fastest["tokens_per_second_decode"]
        )
        assert parts["prefill"] == pytest.approx(1000 * 0.12 / 64)


def test_the_front_is_what_nothing_else_exceeds_in_both(points):
    (figure,) = over_points.front(
        "t", "", [("a", "a 1", 1.0, 9.0), ("a", "a 2", 2.0, 5.0), ("b", "b 1", 1.5, 4.0), ("b", "b 2", 3.0, 1.0)], "y"
    )
    assert {row["name"] for row in figure.table.rows if row["front"]} == {"a 1", "a 2", "b 2"}
    assert [said.partition(":")[0] for said in marks(figure.svg, "dot")] == ["a 1", "a 2", "b 1", "b 2"]


def test_a_step_that_points_train_otherwise_has_a_curve_for_each(points):
    one, two = (Curve(f"f{i}", [0, 10, 20], [4.0, 3.0, 2.0 + i]) for i in range(2))
    trained = [
        replace(p, axes={**p.axes, "train.gamma": i + 1}, curves={"tandem_ce": curve})
        for p in points[:2]
        for i, curve in enumerate((one, two))
    ]
    (figure,) = over_points.training(trained)
    assert [row["name"] for row in figure.table.rows] == [
        "decode=router gamma=2 train.gamma=1",
        "decode=router gamma=2 train.gamma=2",
    ]
    assert [row["last"] for row in figure.table.rows] == [2.0, 3.0]


def test_the_runs_have_the_keys_that_differ_and_no_other(points):
    table = runs(points)
    titles = [column.title.replace(".\n", ".") for column in table.columns]
    assert titles[:5] == ["decode", "gamma", "tau", "decode.verification", "state"]
    assert len(table.rows) == len(points)


def test_each_figure_has_its_numbers_as_a_table_and_what_it_says_is_escaped(points):
    hostile = "<script>alert(1)</script>"
    for p in points:
        for row in p.results["speed"]:
            row["name"] = hostile if row["name"] == "tandem_distil" else row["name"]
    bad = [replace(p, axes={**p.axes, "decode": hostile}, settings={hostile: p.place}) for p in points]
    page = page_of(bad, hostile)
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.loaded == []
    assert parsed.tags.count("script") == 1
    assert page.count('<svg class="chart"') == page.count("<summary>As a table</summary>") > 10
    assert not re.search(r"https?://|url\(|@import", page)
    for svg in re.findall(r"<svg.*?</svg>", page):
        assert re.search(r"<title>.+?</title><desc>.+?</desc>", svg)


def test_two_hundred_runs_make_a_small_page_soon(capsys):
    large = grid(gammas=range(1, 11), taus=[0.05 * n for n in range(1, 11)])
    assert len(large) == 200
    began, used = time.perf_counter(), time.process_time()
    page = page_of(large)
    took, used = time.perf_counter() - began, time.process_time() - used
    with capsys.disabled():
        print(f"\n200 runs: {took:.2f} s ({used:.2f} s of processor time), {len(page.encode()) / 1e6:.2f} MB")
    assert used < 6
    assert len(page.encode()) < 3e6


@pytest.mark.parametrize("gammas", [(2, 4, 8), (4,)])
def test_a_sweep_over_block_lengths_alone_has_its_pictures_too(gammas):
    points = [replace(p, axes={"gamma": p.axes["gamma"]}) for p in grid(gammas, taus=[0.5], rules=["router"])]
    titles = {figure.title: figure for figure in figures_of(points).values()}
    assert any(title.startswith("Acceptance by position") for title in titles)
    assert any(title.startswith("Accepted tokens per block") for title in titles)
    assert any(title.startswith("Tokens per primary run by γ") for title in titles) is (len(gammas) > 1)
    assert not [figure for figure in titles.values() if "None" in figure.svg]
    assert "Acceptance by position" in page_of(points)
