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

from sweeps import paper, plots, tables
from sweeps.report import write_report
from tandem.errors import EnvironmentFailure


def _sizes(name: str, role: str, layers: int, width: int, parameters: int) -> dict[str, Any]:
    return {
        "name": name, "role": role, "stand_in": True, "num_layers": layers, "d_model": width, "num_heads": 8,
        "num_kv_heads": 8, "d_ff": 4 * width, "vocab_size": 4096, "parameters": parameters,
    }  # fmt: skip


def _agreement(
    name: str, accuracy: float, ce: float, relative: float, tv: float, gamma: int | None = None
) -> dict[str, Any]:
    row = {
        "name": name, "accuracy": accuracy, "cross_entropy": ce, "relative_accuracy": relative, "total_variation": tv,
        "parameters": 2_960_000,
    }  # fmt: skip
    return row if gamma is None else row | {"gamma": gamma}


def _speed(name: str, tokens: float, decode: float, end: float, predicted: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "gamma": 5, "tokens_per_primary_run": tokens, "acceptance_rate": (tokens - 1) / 5,
        "primary_runs": 128 / tokens, "secondary_runs": 640 / tokens, "cost_ratio": 0.079, "verify_cost": 1.13,
        "speedup_decode": decode, "speedup_end_to_end": end, "speedup_predicted": predicted,
        "identical_to_primary": 1.0, "identical_to_width1": 0.96875, "tokens_per_second_decode": 46.3 * decode,
        "prompts": 32, **more,
    }  # fmt: skip


def sample_results() -> dict[str, Any]:
    tandem_ce = {
        1: (0.583, 2.06, 0.741, 0.221),
        2: (0.579, 2.08, 0.735, 0.228),
        4: (0.572, 2.11, 0.725, 0.240),
        8: (0.565, 2.14, 0.715, 0.252),
    }
    tandem_distil = {g: (a, c + 0.02, r + 0.014, t - 0.038) for g, (a, c, r, t) in tandem_ce.items()}
    by_position = [
        {
            "name": name,
            "gamma": g,
            "position": p,
            "total_variation": start + 0.05 * math.log2(1 + p),
            "accuracy": 0.58 - 0.01 * p,
        }
        for name, start in (("tandem_ce", 0.19), ("tandem_distil", 0.15))
        for g in (1, 2, 4, 8)
        for p in range(g)
    ]
    return {
        "provenance": {
            "commit": "3f1c9b27d4", "dirty": True, "config_hash": "9a8b7c6d", "seconds": 431.7,
            "date": "2026-11-22T12:00:00+00:00",
            "command": "launch/run.py model=tandem_bison_gecko train=distil",
            "steps": {"tandem_ce": "6d5e4f", "tandem_distil": "0a1b2c"},
            "packages": {"jax": "0.10.2", "flax": "0.12.8"},
            "hardware": {"cpu": "a CPU", "cores": 2, "devices": ["cpu"], "memory_gb": 8, "os": "Linux"},
        },
        "models": [
            _sizes("bison", "primary", 8, 512, 29_800_000),
            _sizes("otter", "middle", 6, 320, 9_700_000),
            _sizes("gecko", "secondary", 4, 192, 2_960_000),
        ],
        "agreement": [
            _agreement("gecko", 0.541, 2.33, 0.662, 0.301),
            _agreement("gecko_ce", 0.552, 2.22, 0.683, 0.277),
            _agreement("gecko_distil", 0.550, 2.24, 0.693, 0.262),
            *(_agreement("tandem_ce", *values, gamma=g) for g, values in tandem_ce.items()),
            *(_agreement("tandem_distil", *values, gamma=g) for g, values in tandem_distil.items()),
            _agreement("otter", 0.592, 2.01, 0.755, 0.204),
            _agreement("bison", 0.641, 1.75, 1.0, 0.0),
        ],
        "agreement_by_position": by_position,
        "speed": [
            {"name": "autoregressive", "tokens_per_primary_run": 1.0, "primary_runs": 128, "speedup_decode": 1.0,
             "speedup_end_to_end": 1.0, "identical_to_primary": 1.0, "tokens_per_second_decode": 46.3, "prompts": 32},
            _speed("gecko_distil", 3.11, 1.62, 1.55, 1.74, acceptance_by_position=[0.68, 0.66, 0.65, 0.64, math.nan],
                   accepted_lengths=[420, 290, 200, 130, 95, 190]),
            _speed("tandem_distil", 3.48, 1.81, 1.72, 1.95, acceptance_by_position=[0.76, 0.72, 0.69, 0.67, 0.65],
                   accepted_lengths=[310, 250, 200, 150, 110, 280]),
        ],
        "standalone": [
            {"name": "tandem_distil", "gamma": 3, "speedup_decode": 2.91, "speedup_end_to_end": 2.6,
             "agreement_with_primary": 0.412, "tokens_per_second_decode": 134.7},
        ],
        "training": {},
    }  # fmt: skip


def sample_metrics() -> list[dict[str, Any]]:
    steps = ("bison", "gecko", "gecko_ce", "tandem_ce", "gecko_distil", "tandem_distil")
    return [
        {
            "time": 0.0,
            "step_name": name,
            "step": step,
            "loss": 1.9 + 0.1 * i + 1.5 / (1 + step / 60) + 0.05 * math.sin(step),
        }
        for i, name in enumerate(steps)
        for step in range(0, 600, 4)
    ]


CONFIG = """
model: {name: tandem_bison_gecko, primary: bison, secondary: gecko, middle: otter}
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
    assert line_of(text, "gecko_distil") == ["–", "55.0", "2.240", "69.3", "0.262", "3.0M"]
    assert line_of(text, "tandem_distil", "2") == ["57.9", "2.100", "74.9", "0.190", "3.0M"]
    assert line_of(text, "paper:", "Tandem-Distil") == ["2", "58.6", "1.990", "81.0", "0.141", "–"]
    below = next(i for i, line in enumerate(lines) if line.split()[:2] == ["tandem_distil", "2"]) + 1
    assert lines[below].startswith("paper: Tandem-Distil")
    assert f"{paper.CAVEAT}." in lines


def test_speed_has_the_papers_end_to_end_and_decode_speedups_side_by_side():
    text = texts(sample_results())["speed"]
    assert line_of(text, "paper:", "Tandem-Distil,", "LM1B") == ["7", "–", "–", "2.76×", "2.61×", "–", "–", "–"]
    assert line_of(text, "tandem_distil")[:6] == ["5", "3.48", "49.6", "1.81×", "1.72×", "1.95×"]
    assert line_of(texts(sample_results())["standalone"], "paper:", "Otter") == ["–", "2.36×", "–", "–", "–", "–"]


def stopped(stop: str, gamma: int, threshold: float | None, over: float, name: str = "tandem_distil") -> dict[str, Any]:
    return {
        "name": name, "stop": stop, "gamma": gamma, "threshold": threshold, "tokens_per_primary_run": 2.41,
        "drafts_per_primary_run": 3.25, "cost_ratio": 0.0512,
        "speedup_decode": 1.5 * over, "over_fixed_decode": over, "over_fixed": 1.02, "over_fixed_flat": 1.07,
        "identical_to_primary": 1.0,
    }  # fmt: skip


def adaptive_results() -> dict[str, Any]:
    head = {"name": "tandem_distil", "positions": 4992, "mean": 0.58, "calibration_error": 0.041, "auc": 0.77}
    return sample_results() | {
        "stopping": [
            stopped("fixed", 4, None, 1.0, "gecko_distil"), stopped("router", 8, 0.3, 1.01, "gecko_distil"),
            stopped("fixed", 4, None, 1.0), stopped("router", 8, 0.3, 0.98), stopped("router", 8, 0.8, 0.9),
            stopped("survival", 7, 0.1234, 1.04), stopped("oracle", 8, None, 1.4),
        ],
        "router": [head | {"head": "this", "temperature": 1.25}, head | {"head": "survival"}],
        "speed_by_category": [
            {"name": name, "category": category, "prompts": 16, "tokens_per_primary_run": tokens,
             "speedup_decode": tokens / 2, "repetition_rate": 0.125}
            for category, tokens in (("writing", 2.25), ("code", 3.5)) for name in ("gecko_distil", "tandem_distil")
        ],
        "stopping_by_category": [
            {"category": category, **stopped("survival", 8, 0.1, over)}
            for category, over in (("lm1b", 1.03), ("reddit", 0.97))
        ],
    }  # fmt: skip


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
    results["speed"][1]["acceptance_by_position"] = [0.5] * 20 + [0.25]
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


@pytest.mark.parametrize(("share", "shown"), [(1.0, "100"), (0.99999, "99.99"), (31 / 32, "96.87")])
def test_only_a_whole_share_is_shown_as_100(share, shown):
    assert tables.whole_percent(share) == shown


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
    assert line_of(text, "autoregressive")[2] == "–"
    assert line_of(text, "paper:", "Tandem-Distil,", "LM1B") == ["7", "–", "–", "2.76×", "–", "–", "–"]


def test_a_run_that_stopped_after_stage_1_has_no_distilled_rows(tmp_path):
    results = sample_results()
    for key in ("agreement", "agreement_by_position", "speed", "standalone"):
        results[key] = [r for r in results[key] if not r["name"].endswith("distil")]
    page = write_run(tmp_path, results)
    assert "tandem_ce, γ = 2; gecko_ce 2.220" in page
    drawn = re.findall(r"<svg.*?</svg>|<table.*?</table>", page.split("<h2>Training")[0])
    assert len(drawn) == 9
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
        paper.CAVEAT, "tandem_distil, γ = 2; gecko_distil 0.262",
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
        "Speedup over the primary", "Acceptance by position", "Accepted tokens per block",
        "Training loss, pretraining", "Training loss, stage 1, cross entropy", "Training loss, stage 2, distillation",
    ]  # fmt: skip
    assert "nan" not in "".join(charts)
    speedup = charts[4]
    assert "tandem_distil: decode 1.81×, end to end 1.72×, predicted 1.95×." in speedup
    assert speedup.count("<rect") == 6 + 3  # bars and the legend's keys
    assert speedup.count("stroke-dasharray") == 1 + 1  # the primary's own speed and its key


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
    config = f"model: {{name: '{hostile}', primary: '{hostile}', secondary: b}}\ndata: {{name: '{hostile}'}}\n"
    page = write_run(tmp_path, results, metrics, config)
    assert "script" not in Page(page).tags
    assert page.count("&lt;script&gt;") > 20


def test_broken_input_lines_are_skipped_and_resumed_steps_counted_once(tmp_path):
    metrics = [
        *sample_metrics(),
        {"step_name": "tandem_ce", "step": 596, "loss": 9.5},
        {"step_name": "x", "step": 1, "loss": math.nan},
    ]
    write_run(tmp_path, sample_results(), metrics)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step_name": "cut o')
    page = write_report(tmp_path).read_text()
    (told,) = re.findall(r"tandem_ce: from [\d.]+ to ([\d.]+)\.", page)
    losses = [m["loss"] for m in metrics if m.get("step_name") == "tandem_ce" and m["step"] in (592, 596)]
    assert float(told) == pytest.approx((losses[0] + 9.5) / 2, abs=0.001)


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
