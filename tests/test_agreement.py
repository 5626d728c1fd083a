"""Scores of a real checkpoint equal lm-evaluation-harness's, in its own environment (benchmarks/agreement.py)."""

from __future__ import annotations

import os

import pytest
from shared_data import data


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_scores_are_those_of_the_evaluation_harness(tmp_path):
    python = os.environ.get("TANDEM_LM_EVAL")
    if not python:
        pytest.skip("TANDEM_LM_EVAL does not name a Python with lm-eval (benchmarks/agreement.py says how to make one)")
    from benchmarks.agreement import main

    files = data("checkpoints/stories260K.bin").parents[1]
    tasks = ["cb_v1", "copa_v1", "lambada_v1", "natural_questions_v1", "webquestions_greedy_v1"]
    words = ["--python", python, "--data", str(files), "--limit", "6", "--out", str(tmp_path), "--tasks", *tasks]
    table = main(words)
    assert [row["task"] for row in table] == tasks
    for row in table:
        assert row["same_question"]
        assert row["same_tokens"] == row["n"] >= 6
        assert row["same_predictions"] == 1.0
        assert all(ours == pytest.approx(theirs, rel=1e-3) for ours, theirs in row["metrics"].values())
        if row["task"] != "natural_questions_v1":
            assert row["same_options"] == row["n"]
            assert row["largest_difference"] < 1e-3
