"""The report, its tables and its charts, from a results file like the ones that runs leave."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sample_results import adaptive_results, joint_results, sample_metrics, sample_results, whole_results

from sweeps import paper, plots, table, tables
from sweeps.report import write_report
from tandem.errors import EnvironmentFailure

CONFIG = """
model: {name: tandem_bison_gecko, primary: {name: bison}, secondary: {name: gecko}, middle: {name: otter}}
train: {name: distil, recipe: distil}
data: {name: stdlib, corpus: stdlib}
gamma: 5
"""


def write_run(
    run_dir: Path, results: dict[str, Any], metrics: list[dict[str, Any]] | None = None, config: str = CONFIG
) -> str:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "results.json").write_text(json.dumps(results))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics or sample_metrics()))
    (run_dir / "config.yaml").write_text(config)
    return write_report(run_dir).read_text()


def texts(results: dict[str, Any]) -> dict[str, str]:
    return {t.key: tables.to_text(t) for t in tables.build_tables(results)}


def line_of(text: str, *words: str) -> list[str]:
    """The cells after the words in the one line that starts with them."""
    (line,) = [line for line in text.splitlines() if line.split()[: len(words)] == list(words)]
    return line.split()[len(words) :]


def test_the_papers_task_means_agree_with_its_tasks():
    for number, task in ((10, "gen_tasks"), (11, "superglue")):
        for name in ("gecko", "tandem_ce", "tandem_distil", "otter", "bison"):
            (mean,) = paper.TABLES[3].rows_of(name, task=task)
            tasks = [r["score"] for r in paper.TABLES[number].rows_of(name)]
            assert statistics.mean(tasks) == pytest.approx(mean["score"], abs=0.001)


def test_the_papers_speedups_are_those_of_table_8():
    table = paper.TABLES[8]
    (ours,) = table.rows_of("tandem_distil", dataset="Reddit", samples=4)
    (base,) = table.rows_of("gecko_distil", dataset="Reddit", samples=4)
    assert (ours["speedup_decode"], base["speedup_decode"], ours["gamma"], base["gamma"]) == (2.425, 2.042, 7, 5)
    assert set(paper.TABLES) == {1, 2, 3, 4, 5, 6, 8, 9, 10, 11}


def test_agreement_shows_our_row_and_the_papers_under_it():
    text = texts(sample_results())["agreement"]
    lines = text.splitlines()
    assert line_of(text, "gecko_distil") == ["–", "55.0", "2.240", "69.3", "0.262", "–", "–", "3.0M"]
    assert line_of(text, "tandem_distil", "2") == ["57.9", "2.100", "74.9", "0.190", "0.0720", "91.1", "3.0M"]
    assert line_of(text, "paper:", "Tandem-Distil") == ["2", "58.6", "1.990", "81.0", "0.141", "–", "–", "–"]
    assert "than that of gecko_ce (tandem_ce), gecko_distil (tandem_distil)" in " ".join(lines)
    below = next(i for i, line in enumerate(lines) if line.split()[:2] == ["tandem_distil", "2"]) + 1
    assert lines[below].startswith("paper: Tandem-Distil")
    assert f"{paper.CAVEAT}." in lines


def test_speed_has_the_papers_end_to_end_and_decode_speedups_side_by_side():
    text = texts(sample_results())["speed"]
    theirs = ["7", "–", "–", "–", "2.76×", "–", "2.61×", "–", "–", "–"]
    assert line_of(text, "paper:", "Tandem-Distil,", "LM1B") == theirs
    assert line_of(text, "tandem_distil")[:8] == ["5", "3.48", "1.09×", "49.6", "1.81×", "1.12×", "1.72×", "1.95×"]
    assert "by tokens per primary run gecko, by decoding gecko_distil." in " ".join(text.splitlines())
    assert line_of(texts(sample_results())["standalone"], "paper:", "Otter") == ["–", "2.36×", "–", "–", "–", "–"]


def test_a_position_is_shown_beside_its_own_tokens_read_otherwise():
    text = texts(sample_results())["agreement_by_position"]
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["tandem_distil", "4"])
    own, fresh, control, left = (line.split() for line in lines[at : at + 4])
    assert own[2:] == ["0.150", "0.200", "0.229", "0.250", *["–"] * 4, "0.207"]
    assert fresh == [*["same", "tokens,", "γ", "=", "1", "–"], *["0.150"] * 4, *["–"] * 4, "0.150"]
    assert control == [*["same", "tokens,", "gecko", "–"], *["0.350"] * 4, *["–"] * 4, "0.350"]
    assert " ".join(left) == "edge left – 100 % 75 % 60 % 50 % – – – – 71 %"
    alone = next(i for i, line in enumerate(lines) if line.split()[:2] == ["tandem_distil", "1"])
    assert lines[alone + 1].split()[:2] == ["tandem_distil", "2"], "with γ = 1 nothing is old"


def test_with_two_primaries_each_drafter_stands_under_its_own():
    shown = texts(joint_results())
    assert all(max(map(len, text.splitlines())) <= 120 for text in shown.values())
    assert not [line for text in shown.values() for line in text.splitlines() if line.endswith("…")]
    for key in ("speed", "costs"):
        names = [" ".join(line.split()[:2]) for line in shown[key].splitlines()]
        order = ["bison, alone", "bison_of_tandem_distil, alone"]
        assert [name for name in names if name.endswith("alone")] == order
        under = names.index(order[1])
        assert any(name.startswith("gecko_distil") for name in names[:under])
        assert any(name.startswith("tandem_distil") for name in names[under:])
    assert line_of(shown["standalone"], "tandem_distil")[0] == "bison_of_tandem_distil"
    assert line_of(shown["speed_by_category"], "code", "tandem_distil")[0] == "bison_of_tandem_distil"
    assert "tandem_distil is verified by bison_of_tandem_distil" in " ".join(shown["stopping"].split())


def test_stopping_rules_stand_together_and_the_papers_under_its_own():
    text = texts(adaptive_results())["stopping"]
    counts = ["2.41", "3.25", "0.051"]
    assert line_of(text, "tandem_distil", "survival") == [
        "7",
        "0.123",
        *counts,
        "1.56×",
        "1.04×",
        "1.02×",
        "1.07×",
        "100",
    ]
    assert line_of(text, "tandem_distil", "fixed")[:2] == ["4", "–"]
    over = ["3.04×", "1.10×"]
    assert line_of(text, "paper:", "LM1B") == ["router", "27", *["–"] * 4, *over, *["–"] * 3]
    lines = text.splitlines()
    above = lines[next(i for i, line in enumerate(lines) if line.startswith("paper:")) - 1]
    assert above.split()[:2] == ["tandem_distil", "router"], "gecko_distil's router is not the paper's"
    assert sum(line.startswith("paper:") for line in lines) == 3 + 1, "three sets of prompts, and the caveat"


def test_what_a_router_knows_and_what_each_category_gives():
    shown = texts(adaptive_results())
    this = line_of(shown["router"], "tandem_distil", "this", "draft", "accepted")
    assert this == ["4,992", "0.580", "0.041", "0.770", "1.25"]
    assert line_of(shown["router"], "tandem_distil", "all")[-1] == "–"
    assert line_of(shown["speed_by_category"], "code", "tandem_distil") == ["16", "3.50", "1.75×", "12.5"]
    rule = line_of(shown["stopping_by_category"], "reddit", "tandem_distil", "survival")
    assert rule == ["8", "0.100", "2.41", "3.25", "0.051", "1.46×", "0.97×", "1.02×", "1.07×", "100"]


def test_acceptance_by_position_is_a_table_too():
    text = texts(sample_results())["acceptance_by_position"]
    assert line_of(text, "tandem_distil") == ["5", "76.0", "72.0", "69.0", "67.0", "65.0"]
    assert line_of(text, "gecko_distil")[-2:] == ["64.0", "–"]
    results = sample_results()
    results["speed"][2]["acceptance_by_position"] = [0.5] * 20 + [0.25]
    text = texts(results)["acceptance_by_position"]
    assert "Positions 12 to 20 are left out here." in text
    assert line_of(text, "gecko_distil")[-2:] == ["50.0", "25.0"]


def test_the_report_has_a_section_on_stopping_where_rules_were_compared(tmp_path):
    title = "<h2>When should drafting stop?</h2>"
    assert title not in write_run(tmp_path, sample_results())
    page = write_run(tmp_path, adaptive_results())
    section = page.split(title)[1].split("</section>")[0]
    assert "What the router knows" in section
    assert "survival" in section
    assert "When to stop drafting, by category of prompts" in section
    assert "SPEED by category of prompts" in page


# Rows that are made of others of the results, for W&B alone: nothing else has the tables' shape as numbers.
DERIVED = {"downstream_tables"}


@pytest.mark.parametrize("name", [source.name for source in tables.SOURCES if source.name not in DERIVED])
def test_rows_of_every_name_reach_the_terminal_and_the_report(tmp_path, name):
    whole = whole_results()
    lacking = {key: rows for key, rows in whole.items() if key != name}
    lost = set(texts(whole).values()) - set(texts(lacking).values())
    assert lost
    assert write_run(tmp_path / "whole", whole) != write_run(tmp_path / "lacking", lacking)


def test_every_table_of_the_terminal_is_in_the_report(tmp_path):
    made = tables.build_tables(whole_results())
    page = write_run(tmp_path, whole_results())
    assert len({one.key for one in made}) == len(made) == len(re.findall(r'<figure class="table">', page))
    assert all(tables.to_html(one) in page for one in made)


@pytest.mark.parametrize(("share", "shown"), [(1.0, "100"), (0.99999, "99.99"), (31 / 32, "96.87")])
def test_only_a_whole_share_is_shown_as_100(share, shown):
    assert table.whole_percent(share) == shown


def test_text_tables_fit_the_terminal_and_hold_no_control_characters():
    results = sample_results()
    results["models"][0]["name"] = "x" * 200
    results["speed"][1]["name"] = "\x1b[31mred\nline"
    adaptive = {"stopping", "stopping_by_category", "router", "speed_by_category"}
    results |= {key: adaptive_results()[key] for key in adaptive}
    results["agreement_by_position"] += [
        {"name": "tandem_ce", "gamma": 32, "position": p, "total_variation": 0.3} for p in range(32)
    ]
    shown = texts(results)
    names = {"models", "agreement", "agreement_by_position", "speed", "costs", "acceptance_by_position", "standalone"}
    assert set(shown) == names | adaptive
    for text in shown.values():
        assert max(map(len, text.splitlines())) <= 120
        assert "\x1b" not in text
    assert "0.300" in line_of(shown["agreement_by_position"], "tandem_ce", "32")
    assert line_of(shown["models"], "x" * 35 + "…")[:2] == ["primary", "29.8M"]


@pytest.mark.parametrize("key", ["models", "agreement", "agreement_by_position", "speed", "standalone", "provenance"])
def test_a_missing_table_is_left_out(tmp_path, key):
    results = sample_results()
    del results[key]
    assert key not in texts(results)
    page = write_run(tmp_path, results)
    assert "Traceback" not in page
    assert ("<h2>Where these" in page) is True


def test_a_column_without_a_value_of_ours_is_left_out():
    results = sample_results()
    assert "end to" in texts(results)["speed"]
    for row in results["speed"]:
        row.pop("speedup_end_to_end")
    results["speed"][0]["acceptance_rate"] = math.nan
    text = texts(results)["speed"]
    assert "end to" not in text
    assert line_of(text, "autoregressive")[3] == "–"
    assert line_of(text, "paper:", "Tandem-Distil,", "LM1B") == ["7", "–", "–", "–", "2.76×", "–", "–", "–", "–"]


def test_a_run_that_stopped_after_stage_1_has_no_distilled_rows(tmp_path):
    results = sample_results()
    for key in ("agreement", "agreement_by_position", "speed", "standalone"):
        results[key] = [r for r in results[key] if not r["name"].endswith("distil")]
    page = write_run(tmp_path, results)
    assert "tandem_ce, γ = 2; best control gecko_ce 2.220" in page
    drawn = re.findall(r"<svg.*?</svg>|<table.*?</table>", page.split("<h2>Training")[0])
    charts = sum(one.startswith("<svg") for one in drawn)
    assert (charts, len(drawn)) == (8, 6 + 2 * 8)  # each chart is a table too
    assert "distil" not in "".join(drawn)
    assert "Tandem-Distil" not in texts(results)["agreement"]


def test_nothing_at_all_still_makes_a_page(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert "<h1>Tandem</h1>" in page
    assert "<table" not in page


class Page(HTMLParser):
    """Collects what a browser would load, the tags, and what is visible beside charts for those who do not see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                self.loaded.append(value or "")
            assert not name.startswith("on"), f"a handler on {tag}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(tmp_path):
    page = write_run(tmp_path, sample_results())
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.loaded == []
    assert parsed.links == [paper.URL]
    assert "script" not in parsed.tags
    assert not re.search(r"url\(|@import|https?://", page.replace(paper.URL, ""))


def test_the_page_says_what_the_run_is(tmp_path):
    page = write_run(tmp_path, sample_results())
    for said in (
        "tandem_bison_gecko, distil", "stand-in", "29.8M parameters", "corpus <b>stdlib</b>, measured on text held out",
        "3f1c9b27d4, with uncommitted changes", "launch/run.py model=tandem_bison_gecko train=distil", "7.2 min",
        paper.CAVEAT, "tandem_distil, γ = 2; best control gecko_distil 0.262",
        "tandem_distil, γ = 5; best control gecko 3.20", "tandem_distil, γ = 5; best control gecko_distil 1.62×",
    ):  # fmt: skip
        assert said in page
    assert [h for h in re.findall(r"<p class=value>(.*?)</p>", page)] == ["0.190", "2.100", "3.48", "1.81×", "100 %"]


def test_every_chart_is_there_and_has_a_text_alternative(tmp_path):
    page = write_run(tmp_path, sample_results())
    charts = re.findall(r'<svg class="chart" role="img".*?</svg>', page)
    named = [re.search(r"<title>(.*?)</title><desc>(.*?)</desc>", c) for c in charts]
    assert all(m and m[2] for m in named)
    assert [m[1] for m in named if m] == [
        "Total variation by block length", "Cross entropy, nats per token by block length",
        "Total variation by position, γ = 8", "Total variation by position, tandem_distil",
        "Speedup over the primary", "Where the time of a token goes", "Acceptance by position",
        "Accepted tokens per block", "Cross entropy in training, pretraining", "Cross entropy in training, stage 1",
        "Cross entropy in training, stage 2, with distillation",
    ]  # fmt: skip
    assert "nan" not in "".join(charts)
    speedup = charts[4]
    assert "tandem_distil: decode 1.81×, end to end 1.72×, predicted 1.95×." in speedup
    assert speedup.count("<rect") == 9 + 3  # bars and the legend's keys
    assert speedup.count("stroke-dasharray") == 1 + 1  # the primary's own speed and its key
    by_position = re.search(r"<desc>(.*?)</desc>", charts[2])
    assert by_position
    for line in ("its tokens at γ = 1: 0.150 at 0, 0.150 at 1", "its tokens, gecko: 0.350 at 0, 0.350 at 1"):
        assert line in by_position[1], "staleness is seen on the same tokens alone"


def test_what_the_run_supplies_is_escaped(tmp_path):
    hostile = "<script>alert(1)</script>"
    results = sample_results()
    for key in ("models", "agreement", "agreement_by_position", "speed", "standalone"):
        for row in results[key]:
            row["name"] = hostile
    results["models"][0]["role"] = hostile
    results["agreement"][0]["accuracy"] = hostile
    results["provenance"] |= {
        "command": hostile,
        "commit": hostile,
        "steps": {hostile: hostile},
        "hardware": {hostile: [hostile]},
    }
    metrics = [m | {"step_name": hostile} for m in sample_metrics()]
    config = f"model: {{name: '{hostile}', primary: {{name: '{hostile}'}}, secondary: {{name: b}}}}\n"
    config += f"data: {{name: '{hostile}'}}\n"
    page = write_run(tmp_path, results, metrics, config)
    assert "script" not in Page(page).tags
    assert page.count("&lt;script&gt;") > 20


def test_broken_input_lines_are_skipped_and_resumed_steps_counted_once(tmp_path):
    metrics = [
        *sample_metrics(),
        {"step_name": "tandem_ce", "step": 596, "cross_entropy": 9.5},
        {"step_name": "x", "step": 1, "cross_entropy": math.nan},
    ]
    write_run(tmp_path, sample_results(), metrics)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step_name": "cut o')
    page = write_report(tmp_path).read_text()
    (told,) = re.findall(r"tandem_ce: from [\d.]+ to ([\d.]+)\.", page)
    losses = [m["cross_entropy"] for m in metrics if m.get("step_name") == "tandem_ce" and m["step"] in (592, 596)]
    assert float(told) == pytest.approx((losses[0] + 9.5) / 2, abs=0.001)


def test_a_spike_of_the_loss_is_marked_in_the_curve_and_in_its_table(tmp_path):
    plain = write_run(tmp_path, sample_results())
    assert "spike" not in plain
    metrics = sample_metrics()
    spiked = next(m for m in metrics if m.get("step_name") == "tandem_ce" and m["step"] > 100)
    spiked |= {"spike_step": spiked["step"] - 3, "spike": 41.5}
    page = write_run(tmp_path, sample_results(), metrics)
    assert f"<title>tandem_ce: spike of 41.5 at {spiked['step'] - 3}</title>" in page
    assert f"41.500 at {spiked['step'] - 3}" in page
    assert page.count('<circle class="mark') == plain.count('<circle class="mark') + 1
    axis = r'y="[\d.]+">([\d.]+k?)</text>'
    assert re.findall(axis, page) == re.findall(axis, plain), "a spike does not flatten the curves"


def test_unreadable_results_are_one_message_and_leave_the_old_page(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"cannot read .*results\.json"):
        write_report(tmp_path)
    write_run(tmp_path, sample_results())
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "results.json").write_text('{"speed": [')
    with pytest.raises(EnvironmentFailure, match="is not JSON"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "metrics.jsonl", "config.yaml", "report.html"}


def test_rendering_does_not_change_the_results():
    results = sample_results()
    before = copy.deepcopy(results)
    texts(results)
    assert results == before


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.14, 0.302), (2.0, 2.0), (0.0, 0.0), (-3.0, 7.5), (1.0, 48_000.0)]
)
def test_ticks_enclose_the_range_in_a_few_round_steps(low, high):
    ticks = plots.ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert len({round(b - a, 9) for a, b in itertools.pairwise(ticks)}) == 1


def test_a_chart_puts_values_where_its_axis_says():
    svg = plots.line_chart("t", "d", [plots.Series("s", [0, 10], [0.0, 4.0])], x_label="x", y_label="y")
    ys = {label: float(y) - 4 for y, label in re.findall(r'text-anchor="end" x="\d+" y="([\d.]+)">([\d.]+)<', svg)}
    dots = [float(y) for y in re.findall(r'<circle[^>]* cy="([\d.]+)"', svg)]
    assert dots == [ys["0"], ys["4"]]
    assert ys["4"] < ys["0"]
    assert plots.line_chart("t", "d", [plots.Series("s", [1], [None])], x_label="x", y_label="y") == ""
