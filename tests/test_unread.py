"""A key that is set means something, or is refused."""

from __future__ import annotations

import pytest

from launch.compose import compose, compose_all, expand
from launch.fleet.plan import Point, plan
from launch.run import main
from launch.unread import reads, refuse_unread
from tandem.errors import ConfigurationError


def refused(*words: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        refuse_unread([compose(words)], [words])
    (problem,) = error.value.problems
    return problem


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tau=0.7"], "tau is not read by decode=greedy; it is by confidence, router, survival"),
        (["drafter.depth=3"], "drafter.depth is not read by drafter=paper; it is by all, eagle, eagle3, kv, medusa"),
        (["eval.gammas=[2]", "eval.measures=[speed]"], "eval.gammas is not read with eval.measures=[speed], and is "),
        (["train=ce", "train.distil_steps=5"], "train.distil_steps is not read with train=ce, and is without it"),
        (["train=ce", "train.rates.tandem_distil=2"], "train.rates.tandem_distil is not read with train=ce, and is "),
        (["scale.models.otter.d_ff=64", "model.middle=null"], "scale.models.otter.d_ff is not read with model.middle="),
        (["train.divergence=tv", "train.temperature=2"], "train.temperature is not read with train.divergence=tv"),
        (["decode.top_k=5"], "decode.top_k is not read by "),
        (["tasks.data_dir=/tmp"], "tasks.data_dir is not read by "),
        (["job=generate", "prompt=x", "tau=0.5"], "tau is not read by decode=greedy; it is by confidence, router, "),
        (["job=tune", "eval.prompts=3", "eval.measures=[agreement]"], "eval.prompts is not read with eval.measures="),
    ],
)
def test_what_nothing_reads_is_refused_with_what_would(words, problem):
    assert refused(*words).startswith(problem)


@pytest.mark.parametrize(
    "words",
    [
        ["decode=router", "tau=0.7", "gamma=4"],
        ["decode=confidence", "tau=0.7"],
        ["decode=survival", "tau=0.1"],
        ["decode.gamma=4"],  # by way of gamma
        ["decode.gamma=3", "scale.further.steps=350", "eval.job=run"],  # their own defaults too
        ["scale.further.steps=5"],  # by way of train.steps
        ["scale.rates.tandem_ce=2"],
        ["train.rates.tandem_ce=2"],
        ["decode.temperature=1", "decode.top_k=5"],
        ["eval=stopping", "eval.gamma_max=4"],
        ["drafter=all", "drafter.depth=6", "drafter.ngram=2"],
        ["job=export", "eval.prompts=3", "eval.measures=[speed]"],  # the words of the run whose models go out
        ["name=x", "tracking.project=y", "platform.chips=1", "runs_dir=z", "train.name=w"],
        ["job=generate", "prompt=x", "gamma=4", "data.chat=off", "decode.temperature=1", "seed=2"],
    ],
)
def test_what_something_reads_is_not(words):
    refuse_unread([compose(words)], [words])


def test_nothing_but_what_is_read_is_noted():
    read = reads(compose(["train=ce", "eval.measures=[agreement]"]))
    assert read is not None
    assert {"train.steps", "train.rates.tandem_ce", "eval.gammas", "scale.models.gecko.d_ff", "seed"} <= read
    assert not read & {"train.distil_steps", "train.rates.tandem_distil", "gamma", "tau", "decode.temperature"}


def test_in_a_sweep_one_reader_is_enough():
    words = ["decode=greedy,router", "tau=0.7,0.9"]
    refuse_unread(compose_all(expand(words)), expand(words))
    with pytest.raises(ConfigurationError, match="tau is not read by decode=greedy"):
        refuse_unread(compose_all(expand(words[1:])), expand(words[1:]))


def test_points_that_mean_the_same_are_one_job(tmp_path):
    words = expand(["scale=tiny", "decode=greedy,router", "tau=0.7,0.9", f"runs_dir={tmp_path}"])
    planned = plan([Point(tuple(point), compose(point)) for point in words], "sweep-0", 5.0)
    assert planned.equal == {"decode=greedy tau=0.9": "decode=greedy tau=0.7"}
    points = [job.title for job in planned.jobs if job.id.startswith("p")]
    assert points == ["decode=greedy tau=0.7", "decode=router tau=0.7", "decode=router tau=0.9"]


def test_the_command_line_refuses_and_writes_nothing(tmp_path, capsys):
    with pytest.raises(ConfigurationError, match="tau is not read by decode=greedy"):
        main(["tau=0.7", f"runs_dir={tmp_path / 'runs'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_rule_brings_its_own_block_length_and_threshold():
    settings = {}
    for rule in ("greedy", "router", "confidence", "survival"):
        experiment = compose([f"decode={rule}"])
        settings[rule] = (experiment.gamma, experiment.tau)
    assert settings == {"greedy": (3, None), "router": (8, 0.8), "confidence": (8, 0.4), "survival": (8, None)}
    tuned, set_ = ({s.name for s in _speed(words).inputs.values()} for words in ([], ["tau=0.1"]))
    assert "tune_tandem_distil" in tuned
    assert "tune_tandem_distil" not in set_


def _speed(words):
    from launch.experiment import build

    return next(step for step in build(compose(["decode=survival", *words])) if step.kind == "speed")


def test_downstream_tasks_imply_their_job():
    assert compose(["eval=superglue"]).job == "evaluate"
    assert compose(["eval=paper"]).job == "run"
    with pytest.raises(ConfigurationError, match=r"eval.tasks=.* is read by job=evaluate, and not by job=run"):
        compose(["eval=superglue", "job=run"])


def test_a_prompt_is_read_by_an_answer_alone():
    with pytest.raises(ConfigurationError, match="prompt is read by job=generate, and not by job=run"):
        compose(["prompt=x"])


def test_a_threshold_of_zero_is_one():
    from launch.experiment import build

    (compared,) = [
        step for step in build(compose(["decode=router", "tau=0", "eval=stopping"])) if step.kind == "stopping"
    ]
    assert compared.tau == 0


@pytest.mark.parametrize("pair", ["tandem_gemma3_4b_270m", "tandem_mistral_7b_3_layers", "tandem_smollm2"])
def test_a_pair_that_states_its_sizes_is_asked_too(pair):
    """Their decoders are changed copies of what is watched."""
    read = reads(compose(["job=compile", f"model={pair}", "platform=v5e_4"]))
    assert read is not None
    assert "platform.topology" in read
    assert not any(name.startswith("tracking.") for name in read)
