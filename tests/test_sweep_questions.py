"""Sweeps that are files: each is a grid that composes, and whose every key is read."""

from __future__ import annotations

from html import escape

import pytest
from synthetic_sweep import grid

from launch import questions
from launch.compose import compose_all, expand
from launch.fleet.answer import Found
from launch.run import main
from launch.unread import refuse_unread
from sweeps.sweep_report import render
from tandem.errors import ConfigurationError


@pytest.mark.parametrize("name", questions.names())
def test_a_question_is_a_grid_that_composes(name):
    question = questions.read(name)
    assert question.title.endswith("?")
    assert question.hypothesis
    assert question.leads[0] == f"Expected: {question.hypothesis}"
    assert all(finding.what and finding.commit and finding.machine for finding in question.found)
    jobs = expand(question.words(["scale=tiny"] if name != "layer_map" else []))
    refuse_unread(compose_all(jobs), jobs)
    size = 1
    for values in question.axes.values():
        assert len(values) > 1
        size *= len(values)
    assert len(jobs) == size


def test_own_words_come_after_and_take_the_place_of_an_axis():
    words = questions.typed_words(["+sweep=gamma_tau", "gamma=5", "eval.prompts=2", "seed=1"])
    assert words == [
        "drafter=tandem",
        "eval.measures=[speed]",
        "decode=router,confidence",
        "tau=0.2,0.4,0.6,0.8",
        "gamma=5",
        "eval.prompts=2",
        "seed=1",
    ]
    assert questions.typed_words(["gamma=5"]) == ["gamma=5"]


@pytest.mark.parametrize(("name", "table"), [("gamma_tau", "speed"), ("layer_map", "agreement")])
def test_a_report_begins_with_what_is_known_and_is_answered_by_the_questions_table(name, table):
    question = questions.read(name)
    found = Found.of("sweep-1", ["-m", f"+sweep={name}"], grid())
    assert found is not None
    assert found.answer.key == table
    page = render(found.title, found.leads, found.command, found.points, found.answer)
    assert question.found
    for lead in (f"Expected: {question.hypothesis}", *map(str, question.found)):
        assert escape(lead) in page


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-m", "+sweep=gama_tau"], r"\+sweep=gama_tau is not one of .*list; did you mean gamma_tau\?"),
        (["+sweep=gamma_tau"], r"\+sweep=gamma_tau is a grid of runs: add -m"),
        (["-m", "+sweep=gamma_tau", "+sweep=modes"], r"a sweep asks one question, and \+sweep=gamma_tau is another"),
    ],
)
def test_what_is_no_question_is_refused(words, problem):
    with pytest.raises(ConfigurationError, match=problem):
        main(words)


def test_the_list_has_all_with_what_is_expected(capsys):
    assert main(["+sweep=list"]) == 0
    said = capsys.readouterr().out
    for name in questions.names():
        assert f"+sweep={name}: {questions.read(name).title}" in said
        assert all(str(finding)[:60] in " ".join(said.split()) for finding in questions.read(name).found)
    assert f"40 points, {questions.read('gamma_tau').takes}: drafter=tandem" in said
