"""The paper's claims beside what runs measured: the same direction, the other one, or not measured."""

from __future__ import annotations

import pytest

from launch import questions
from launch.compose import compose_all, expand
from launch.run import main
from sweeps.paper_claims import EVEN, OPPOSITE, SAME, UNKNOWN, claims, claims_table
from sweeps.tables import TEXT_WIDTH, to_text
from tandem.errors import ConfigurationError

MODELS = [
    {"name": "large", "role": "primary"},
    {"name": "mid", "role": "middle"},
    {"name": "small", "role": "secondary"},
]


def rows_by_claim(*runs, missing=""):
    table = claims_table([{"models": MODELS, **run} for run in runs], missing)
    assert table is not None
    return {f"{row['models']}, {row.get('what')}": row for row in table.rows}


def test_models_are_known_by_their_roles():
    agreement = [
        {"name": "small", "total_variation": 0.4, "cross_entropy": 2.0},
        {"name": "small_distil", "total_variation": 0.4},
        {"name": "tandem_ce", "gamma": 2, "total_variation": 0.41, "cross_entropy": 1.9},
        {"name": "tandem_distil", "gamma": 2, "total_variation": 0.3},
        {"name": "tandem_distil", "gamma": 4, "total_variation": 0.9},
    ]
    rows = rows_by_claim({"agreement": agreement}, missing="paper/table2 failed")
    better = rows["tandem_distil : gecko_distil, total variation"]
    assert (better["ours"], better["theirs"], better["direction"]) == ("0.300 : 0.400", "0.141 : 0.318", SAME)
    assert rows["tandem_ce : gecko, total variation"]["direction"] == OPPOSITE
    assert rows["tandem_ce : gecko, cross entropy"]["direction"] == SAME
    agreement[1]["total_variation"] = 0.3
    even = rows_by_claim({"agreement": agreement})["tandem_distil : gecko_distil, total variation"]
    assert even["direction"] == EVEN
    absent = rows["tandem_distil : gecko_distil, LM1B, 1 sample"]
    assert (absent["direction"], absent["ours"]) == (UNKNOWN, None)


def test_speeds_on_the_papers_data_set_go_before_those_on_other_prompts():
    def speeds(tandem, control, **more):
        named = {"small_distil": control, "tandem_distil": tandem}
        return [{"name": name, "speedup_decode": value, **more} for name, value in named.items()]

    one = {"speed": speeds(1.0, 1.5, samples=1), "speed_by_category": speeds(2.0, 1.5, category="lm1b")}
    four = {"speed": speeds(1.2, 1.1, samples=4)}
    found = {(c.table, c.what): c for c in claims([{"models": MODELS, **r} for r in (four, one)])}
    assert (found[8, "LM1B, 1 sample"].ours, found[8, "LM1B, 1 sample"].caveat) == ((2.0, 1.5), "")
    assert found[8, "Reddit, 1 sample"].ours is None, "LM1B is not Reddit"
    stood_in = [found[8, f"{name}, 4 samples"] for name in ("Reddit", "CNN/DailyMail", "LM1B")]
    assert [claim.ours for claim in stood_in] == [(1.2, 1.1), None, None], "one measurement is not three"
    assert stood_in[0].caveat == "own"
    assert found[2, "LM1B, 1 sample"].ours is None  # nothing was measured end to end


def test_scores_say_where_they_are_too_close_to_tell():
    def scored(name, score, half, **more):
        interval = {"low": score - half, "high": score + half}
        about = {"suite": "superglue", "primary_metric": True, "metric": "accuracy", "n": 100}
        return {"name": name, "task": "boolq_v1", "score": score, **about, **interval, **more}

    close = [
        scored("tandem_distil", 60.0, 5.0, gamma=3),
        scored("tandem_distil", 99.0, 0.1, gamma=7),
        scored("small", 61.0, 5.0),
    ]
    row = rows_by_claim({"downstream": close})["tandem_distil : gecko, boolq, %"]
    assert (row["ours"], row["direction"], row["caveat"]) == ("60.0 : 61.0", OPPOSITE, "close")
    row = rows_by_claim({"downstream": [scored("tandem_distil", 60.0, 1.0, gamma=3), scored("small", 70.0, 1.0)]})
    assert row["tandem_distil : gecko, boolq, %"]["caveat"] == ""


def test_layers_cut_out_of_a_primary_are_said_to_be_no_model():
    """A pair of its own layers has no model as the paper's gecko is; its distilled control is one."""
    models = [{**model, "source": "from_primary"} if model["role"] == "secondary" else model for model in MODELS]
    agreement = [
        {"name": "small", "cross_entropy": 9.0},
        {"name": "small_distil", "cross_entropy": 3.0},
        *({"name": f"tandem_{loss}", "gamma": 2, "cross_entropy": 2.9} for loss in ("ce", "distil")),
    ]
    table = claims_table([{"models": models, "agreement": agreement}])
    assert table is not None
    said = {row["models"]: row["caveat"] for row in table.rows if row.get("what") == "cross entropy"}
    assert said == {"tandem_ce : gecko": "layers", "tandem_distil : gecko_distil": ""}
    assert any(note.startswith("Layers: the secondary alone is layers of its primary") for note in table.notes)


def test_what_is_written_with_the_same_digits_is_even():
    """A speed of two prompts is not known to a thousandth."""
    control = {"name": "small_distil", "samples": 1, "speedup_decode": 0.8712}
    for ahead, direction in ((0.8741, EVEN), (0.8791, SAME)):
        rows = [control, {"name": "tandem_distil", "samples": 1, "speedup_decode": ahead}]
        claim = next(c for c in claims([{"models": MODELS, "speed": rows}]) if (c.table, c.what[:6]) == (8, "Reddit"))
        assert claim.row()["direction"] == direction


def test_why_a_number_is_missing_is_said():
    """The last stage is found without the first; a pair may have no middle model; questions may not be at hand."""
    pair = [model for model in MODELS if model["role"] != "middle"]
    agreement = [
        {"name": "tandem_distil", "cross_entropy": 3.0, "gamma": 2},
        {"name": "small_distil", "cross_entropy": 3.1},
    ]
    standalone = [{"name": "tandem_distil", "gamma": 3, "speedup_end_to_end": 2.0}]
    about = {"suite": "superglue", "task": "boolq_v1", "primary_metric": True, "metric": "accuracy", "n": 10}
    scores = [{"name": "small", "score": 50.0, "low": 40.0, "high": 60.0, **about}]
    table = claims_table([{"models": pair, "agreement": agreement, "standalone": standalone, "downstream": scores}])
    assert table is not None
    said = {(row["models"], row.get("what")): row.get("caveat", "") for row in table.rows}
    assert said["tandem_ce : gecko", "cross entropy"] == "no stage"
    assert said["tandem_distil : gecko_distil", "cross entropy"] == ""
    assert said["tandem_distil : otter", "speedup alone"] == "no otter"
    assert said["tandem_distil : gecko", "record, %"] == "left out"
    for word in ("No stage: the first stage", "No otter: the pair has", "Left out: not among the tasks"):
        assert any(note.startswith(word) for note in table.notes), word
    bare = {claim.what: claim.caveat for claim in claims([{"models": MODELS, "agreement": []}])}
    assert set(bare.values()) == {""}


def test_runs_of_the_models_are_compared_with_the_fastest_block_length():
    def row(stop, gamma, **measured):
        return {"name": "tandem_distil", "stop": stop, "gamma": gamma, **measured}

    rows = [
        row("fixed", 3, primary_runs=50, secondary_runs=150, speedup_decode=1.2),
        row("fixed", 7, primary_runs=40, secondary_runs=280, speedup_decode=1.0),
        row("router", 27, primary_runs=55, secondary_runs=100),
        row("router", 17, over_fixed_decode=1.1, over_fixed_end_to_end=0.9),
    ]
    made = rows_by_claim({"stopping": rows})
    assert made["router : one block length, runs of the primary"]["ours"] == "55.0 : 50.0"
    assert made["router : one block length, runs of the secondary"]["direction"] == SAME
    found = {claim.table: claim for claim in claims([{"stopping": rows}]) if "Reddit, γ_max" in claim.what}
    assert (found[4].row()["direction"], found[9].row()["direction"]) == (OPPOSITE, SAME)


def test_nothing_measured_is_no_table():
    assert claims_table([{"models": MODELS}]) is None


def test_the_whole_paper_is_a_sweep_over_its_tables():
    words = questions.spelt_out(["experiment=paper/all", "scale=tiny"])
    assert words == ["-m", "+sweep=paper", "scale=tiny"]
    question = questions.asked(words)
    assert question is not None
    assert question.answer == "paper_claims"
    jobs = expand(questions.typed_words(words[1:]))
    assert [job[-2] for job in jobs] == [f"experiment=paper/table{n}" for n in ("1", "2", "2_4_samples", "3", "4", "5")]
    assert len(compose_all(jobs)) == 6


@pytest.mark.parametrize("table", [6, 7])
def test_deep_tandems_tables_are_refused_by_name(table):
    with pytest.raises(ConfigurationError, match=r"experiment=paper/table\d: Deep Tandem .* is not here yet"):
        main([f"experiment=paper/table{table}"])


def test_the_table_fits_a_terminal():
    rows = [{"stop": "router", "gamma": 17, "over_fixed_decode": 1.1}]
    table = claims_table([{"models": MODELS, "stopping": rows}], "experiment=paper/table3 is exit code 1")
    assert table is not None
    lines = to_text(table).splitlines()
    assert all(len(line) <= TEXT_WIDTH for line in lines)
    assert not [line for line in lines if "…" in line]
    assert {"own, best"} <= {row.get("caveat") for row in table.rows}
    assert any(line.startswith("Own: ") for line in lines)
