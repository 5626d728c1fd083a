"""Checks across the fields of an experiment, all reported at once.

Types and unknown keys are the composer's business (`launch/compose.py`); here are the rules that no type can say.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from tandem.checks import Checks, nearest
from tandem.config import (
    ROWS,
    Corpus,
    DecoderConfig,
    Experiment,
    Job,
    Measure,
    OptimizerConfig,
    PrimaryMode,
    Rates,
    ScaleConfig,
    TrackingConfig,
    TrainConfig,
)
from tandem.data.prompts import PROMPT_SETS, prompt_file
from tandem.decoding.drafters import head_names
from tandem.pair import CHECKPOINTS, STAND_INS, sides
from tandem.validate_drafters import check_drafters, check_stopping
from tandem.validate_pair import check_decoder, check_pair

LARGEST_SEED = 2**31 - 1

# Weights & Biases' own rules, which it says only once a run is under way: characters of a tag and of a project.
TAG_LENGTH, PROJECT_LENGTH, NOT_IN_PROJECTS = 64, 128, "/\\#?%:"

# Jobs about finished runs, which `runs` names.
ABOUT_NAMED_RUNS = (Job.compare, Job.repeat, Job.report)
# Chips of the platforms v5e_1 and so on.
TPU_PRESETS = (1, 4, 8, 16, 64, 256)


def validate(experiment: Experiment) -> list[str]:
    """Everything that is wrong with an experiment, a sentence each: key, value, what is allowed."""
    check = Checks()
    _paths(experiment, check)
    if check.problems:  # what follows asks the disk about them
        return check.problems
    check.at_least("gamma", experiment.gamma, 0)
    if experiment.tau is not None:
        check.within("tau", experiment.tau, 0.0, 1.0)
    check.within("seed", experiment.seed, 0, LARGEST_SEED)
    name = experiment.name
    if name is not None and (name in ("", ".", "..", "store") or set(name) & set("/\\\0")):
        check.wrong("name", name, "must be usable as the name of a directory beside the store")
    for key in ("model", "scale", "train", "platform"):
        _part_of_name(f"{key}.name", getattr(experiment, key).name, check)
    _tracking(experiment.tracking, check)
    about_sweep = experiment.job is Job.report or experiment.job.value.startswith("sweep_")
    if experiment.sweep is not None and not about_sweep:
        rule = f"is read by job=report, sweep_status and the like, and not by job={experiment.job}"
        check.wrong("sweep", experiment.sweep, rule)
    if experiment.publish and experiment.job is not Job.report:
        check.problems.append(f"publish=true is read by job=report, and not by job={experiment.job}")
    if experiment.runs is not None and experiment.job not in ABOUT_NAMED_RUNS:
        rule = f"is read by {', '.join(f'job={job}' for job in ABOUT_NAMED_RUNS)}, and not by job={experiment.job}"
        check.wrong("runs", experiment.runs, rule)
    if experiment.job is Job.report and experiment.runs is not None and (experiment.sweep or experiment.publish):
        check.problems.append("job=report is of runs=[…] or of sweep=ID; publish=true publishes the latter")
    if not experiment.runs_dir:
        check.wrong("runs_dir", experiment.runs_dir, "must name a directory")
    if experiment.prompt is not None and not is_text(experiment.prompt):
        check.problems.append("prompt holds bytes that are not UTF-8, or half of a surrogate pair")
    if experiment.prompt is not None and experiment.job is not Job.generate:
        check.problems.append(f"prompt is read by job=generate, and not by job={experiment.job}")
    if experiment.job is Job.generate and not experiment.prompt:
        check.problems.append('job=generate needs a prompt that is not empty, as in prompt="def main():"')
    _scale(experiment.scale, check)
    decoders = check_pair(experiment, check)
    _train(experiment.train, check)
    _data(experiment, check)
    _measures(experiment, check)
    check_drafters(experiment, check)
    _tasks(experiment, check)
    _platform(experiment, decoders, check)
    return check.problems


def _paths(experiment: Experiment, check: Checks) -> None:
    data, pair = experiment.data, experiment.model
    paths = {"runs_dir": experiment.runs_dir, "name": experiment.name, "tasks.data_dir": experiment.tasks.data_dir}
    paths |= {"data.path": data.path, "data.data_dir": data.data_dir}
    paths |= {f"data.prompts[{index}]": name for index, name in enumerate(data.prompts or ())}
    for role in ("primary", "secondary", "middle"):
        if side := getattr(pair, role):
            paths |= {f"model.{role}.path": side.path, f"model.{role}.tokenizer": side.tokenizer}
    for key, path in paths.items():
        check.path(key, path)


def _part_of_name(key: str, name: str, check: Checks) -> None:
    """Names that are in a run directory's, and W&B's tags."""
    check.length(key, name, TAG_LENGTH)
    if set(name) & set("/\\\0"):
        check.wrong(key, name, "must be usable in the name of a directory")


def _tracking(tracking: TrackingConfig, check: Checks) -> None:
    for index, tag in enumerate(tracking.tags):
        check.length(f"tracking.tags[{index}]", tag, TAG_LENGTH)
    check.length("tracking.project", tracking.project, PROJECT_LENGTH)
    if found := sorted(set(tracking.project) & set(NOT_IN_PROJECTS)):
        check.wrong("tracking.project", tracking.project, f"must be without {' '.join(found)}")


def _scale(scale: ScaleConfig, check: Checks) -> None:
    for name, decoder in scale.models.items():
        check_decoder(f"scale.models.{name}", decoder, check)
    for name, optimizer in scale.pretrain.items():
        _optimizer(f"scale.pretrain.{name}", optimizer, check)
        if name not in scale.models:
            check.wrong("scale.pretrain", name, f"is not a model of scale.models{nearest(name, scale.models)}")
    _optimizer("scale.further", scale.further, check)
    check.at_least("scale.distil_steps", scale.distil_steps, 1)
    _rates("scale.rates", scale.rates, check)


def rate_names() -> list[str]:
    """The rows of the tables that a learning rate can be multiplied for."""
    return [*ROWS, *head_names()]


def _rates(key: str, rates: Rates, check: Checks) -> None:
    for name, rate in rates.items():
        if name not in rate_names():
            check.problems.append(f"{key}.{name} is no row that is trained{nearest(name, rate_names())}")
        check.positive(f"{key}.{name}", rate)


def _optimizer(key: str, optimizer: OptimizerConfig, check: Checks) -> None:
    check.at_least(f"{key}.steps", optimizer.steps, 1)
    batch_is_good = check.at_least(f"{key}.batch_size", optimizer.batch_size, 1)
    check.at_least(f"{key}.seq_len", optimizer.seq_len, 2)
    check.positive(f"{key}.learning_rate", optimizer.learning_rate)
    check.at_least(f"{key}.projection_rate", optimizer.projection_rate, 0)
    check.at_least(f"{key}.warmup_steps", optimizer.warmup_steps, 0)
    check.within(f"{key}.final_rate", optimizer.final_rate, 0.0, 1.0)
    check.at_least(f"{key}.weight_decay", optimizer.weight_decay, 0)
    check.positive(f"{key}.clip_norm", optimizer.clip_norm)
    accumulate_is_good = check.at_least(f"{key}.accumulate", optimizer.accumulate, 1)
    if batch_is_good and accumulate_is_good and optimizer.batch_size % optimizer.accumulate:
        check.wrong(f"{key}.accumulate", optimizer.accumulate, f"must divide batch_size={optimizer.batch_size}")


def _train(train: TrainConfig, check: Checks) -> None:
    _optimizer("train", train, check)
    check.at_least("train.distil_steps", train.distil_steps, 1)
    _rates("train.rates", train.rates, check)
    check.block_lengths("train.gamma", train.gamma)
    check.within("train.distil_weight", train.distil_weight, 0.0, 1.0)
    check.positive("train.temperature", train.temperature)
    check.positive("train.position_decay", train.position_decay)
    if train.recorded_tokens is not None:
        check.at_least("train.recorded_tokens", train.recorded_tokens, max(2, train.seq_len))
        if train.primary is not PrimaryMode.frozen:
            rule = f"is of a frozen primary, and train.primary={train.primary.value} trains it"
            check.wrong("train.recorded_tokens", train.recorded_tokens, rule)
    if train.vocabulary is not None:
        check.at_least("train.vocabulary", train.vocabulary, 2)


def _data(experiment: Experiment, check: Checks) -> None:
    data = experiment.data
    if not 0.0 < data.heldout_fraction < 1.0:
        check.wrong("data.heldout_fraction", data.heldout_fraction, "must be above 0 and below 1")
    _prompts(experiment, check)
    if data.corpus == Corpus.text:
        if data.path is None:
            check.problems.append("data=text needs data.path, a file or a folder of texts (plain, .gz or .xz)")
        elif not os.path.exists(Path(data.path).expanduser()):
            check.wrong("data.path", data.path, f"does not exist{_nearest_sibling(Path(data.path).expanduser())}")
        if not data.separator.strip():
            check.wrong("data.separator", data.separator, "must be a line that is not blank")
    if data.corpus == Corpus.sampled:
        _sampled(experiment, check)
    if data.corpus == Corpus.tfds:
        if data.dataset is None:
            check.problems.append("data=tfds needs data.name, as in data.name=lm1b:1.1.0")
        if (
            data.data_dir is not None
            and "://" not in data.data_dir
            and not os.path.isdir(Path(data.data_dir).expanduser())
        ):
            check.wrong("data.data_dir", data.data_dir, "is not a directory")


def _sampled(experiment: Experiment, check: Checks) -> None:
    data, side = experiment.data, experiment.model.primary
    if side.source not in CHECKPOINTS:
        rule = f"is what a checkpoint writes, and {side.name} learns from the corpus; choose a model with a checkpoint"
        check.wrong("data.corpus", data.corpus.value, f"{rule}, as model=tandem_smollm2, or another data")
    if not data.openings or not all(data.openings.values()):
        check.wrong("data.openings", dict(data.openings), "must name kinds of beginnings, each with one or more")
    if not data.temperatures or min(data.temperatures) <= 0:
        check.wrong("data.temperatures", list(data.temperatures), "must be one or more numbers above 0")
    check.at_least("data.documents", data.documents, 2)
    check.at_least("data.document_tokens", data.document_tokens, 16)


def is_text(words: str) -> bool:
    """Whether a text can be encoded: the command line gives bytes that are not UTF-8 as halves of surrogate pairs."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prompts(experiment: Experiment, check: Checks) -> None:
    names, directory = experiment.data.prompts, experiment.tasks.data_dir
    if names is None:
        return
    if not names or len(set(names)) != len(names):
        check.wrong("data.prompts", names, "must name one or more files, none of them twice")
    for name in names:
        path = prompt_file(name, directory)
        if name in PROMPT_SETS and directory is None:
            check.wrong("data.prompts", name, f"needs tasks.data_dir, a directory with {PROMPT_SETS[name]}")
        elif not os.path.isfile(path):
            close = nearest(name, PROMPT_SETS) if path == Path(name) and path.parent == Path() else ""
            there = f" ({path})" if name in PROMPT_SETS else ""
            check.wrong("data.prompts", name, f"is not a file{there}{_nearest_sibling(path) or close}")


def _nearest_sibling(path: Path) -> str:
    """The closest name beside a path that does not exist."""
    parent = path.absolute().parent
    if not os.path.isdir(parent):
        return f" (nor does {parent})"
    try:
        names = os.listdir(parent)
    except OSError as error:
        return f" ({parent}: {error.strerror})"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _measures(experiment: Experiment, check: Checks) -> None:
    measured, decode = experiment.eval, experiment.decode
    check.block_lengths("eval.gammas", measured.gammas)
    check.block_lengths("eval.standalone_gammas", measured.standalone_gammas)
    for key in ("sequences", "prompts", "repeats"):
        check.at_least(f"eval.{key}", getattr(measured, key), 1)
    # The last prompt token is decoded, not prefilled, so one token before it is the least.
    check.at_least("decode.prompt_tokens", decode.prompt_tokens, 2)
    check.at_least("decode.max_new_tokens", decode.max_new_tokens, 1)
    if decode.prompt_tokens + decode.max_new_tokens > decode.cache_tokens:
        wanted = f"decode.prompt_tokens={decode.prompt_tokens} and decode.max_new_tokens={decode.max_new_tokens}"
        rule = f"must hold {wanted}"
        check.wrong("decode.cache_tokens", decode.cache_tokens, rule)
    check.at_least("decode.temperature", decode.temperature, 0)
    check.at_least("decode.top_k", decode.top_k, 0)
    if not 0 < decode.top_p <= 1:
        check.wrong("decode.top_p", decode.top_p, "must be above 0 and at most 1")
    check.at_least("decode.num_samples", decode.num_samples, 1)
    check.at_least("decode.batch_size", decode.batch_size, 1)
    check_stopping(experiment, check)
    lists = {
        "eval.measures": measured.measures,
        "eval.stops": measured.stops,
        "drafter.drafters": experiment.drafter.drafters,
    }
    for key, values in lists.items():
        if len(set(values)) != len(values):
            check.wrong(key, [str(value) for value in values], "names something twice")
    if not measured.measures and not measured.stops and experiment.job is not Job.evaluate:
        check.wrong("eval.measures", "[]", f"must name at least one of {', '.join(Measure)}, or eval.stops a rule")


def _tasks(experiment: Experiment, check: Checks) -> None:
    check.at_least("eval.shots", experiment.eval.shots, 0)
    check.within("eval.seed", experiment.eval.seed, 0, LARGEST_SEED)
    check.at_least("eval.batch_size", experiment.eval.batch_size, 1)
    # The longest answers that a task asks for have 512 tokens.
    check.at_least("eval.max_length", experiment.eval.max_length, 640)
    check.at_least("eval.mbpp.samples", experiment.eval.mbpp.samples, 1)
    check.positive("eval.mbpp.temperature", experiment.eval.mbpp.temperature)
    check.positive("eval.mbpp.timeout", experiment.eval.mbpp.timeout)
    if experiment.eval.limit is not None:
        check.at_least("eval.limit", experiment.eval.limit, 1)
    if experiment.eval.tasks and experiment.job in (Job.run, Job.speed):
        rule = f"is read by job=evaluate, and not by job={experiment.job}"
        check.wrong("eval.tasks", [str(task) for task in experiment.eval.tasks], rule)
    if len(set(experiment.eval.tasks)) != len(experiment.eval.tasks):
        check.wrong("eval.tasks", experiment.eval.tasks, "names something twice")
    directory = experiment.tasks.data_dir
    if directory is not None and not experiment.tasks.download and not os.path.isdir(Path(directory).expanduser()):
        rule = f"is not a directory{_nearest_sibling(Path(directory).expanduser())}"
        check.wrong("tasks.data_dir", directory, rule)


def _platform(experiment: Experiment, decoders: Mapping[str, DecoderConfig], check: Checks) -> None:
    platform, scale = experiment.platform, experiment.scale
    if experiment.job is Job.compile:
        _compile(experiment, check)
    sizes = ("chips", "hosts", "chips_per_host", "data", "fsdp", "tensor", "start_timeout_s")
    if not all([check.at_least(f"platform.{name}", getattr(platform, name), 1) for name in sizes]):
        return
    # Less than this a host that only waits for a slow disk would be given up.
    check.at_least("platform.host_timeout_s", platform.host_timeout_s, 5)
    data, fsdp, tensor = platform.data, platform.fsdp, platform.tensor
    if data * fsdp * tensor != platform.chips:
        mesh = f"platform.data={data} × platform.fsdp={fsdp} × platform.tensor={tensor}"
        check.wrong("platform.chips", platform.chips, f"must be {mesh}, which is {data * fsdp * tensor}")
    if platform.hosts > 1 and experiment.train.recorded_tokens is not None:
        check.wrong("train.recorded_tokens", experiment.train.recorded_tokens, "is read by one host, not by several")
    if platform.hosts * platform.chips_per_host != platform.chips:
        rule = f"× platform.chips_per_host={platform.chips_per_host} must be platform.chips={platform.chips}"
        check.wrong("platform.hosts", platform.hosts, rule)
    stand_ins = [side.name for side in sides(experiment.model) if side.source in STAND_INS]
    trained: dict[str, OptimizerConfig] = {"train": experiment.train}
    trained |= {f"scale.pretrain.{name}": scale.pretrain[name] for name in stand_ins if name in scale.pretrain}
    for key, optimizer in trained.items():
        if optimizer.accumulate >= 1 and optimizer.batch_size % optimizer.accumulate == 0:
            rows = optimizer.batch_size // optimizer.accumulate
            if rows % (data * fsdp):
                parts = f"platform.data={data} × platform.fsdp={fsdp}"
                rule = f"/ {key}.accumulate={optimizer.accumulate} must be divisible by {parts}"
                check.wrong(f"{key}.batch_size", optimizer.batch_size, rule)
    for role, decoder in decoders.items():
        side = getattr(experiment.model, role)
        for size in ("num_heads", "num_kv_heads"):
            if getattr(decoder, size) % tensor:
                where = f"scale.models.{side.name}.{size}" if side.source in STAND_INS else f"{side.name}'s {size}"
                check.wrong("platform.tensor", tensor, f"must divide {where}={getattr(decoder, size)}")


def _compile(experiment: Experiment, check: Checks) -> None:
    platform = experiment.platform
    if platform.topology is None:
        like = next((chips for chips in TPU_PRESETS if chips >= platform.chips), TPU_PRESETS[-1])
        rule = f"is no TPU, which job=compile compiles for; did you mean platform=v5e_{like}?"
        check.wrong("platform", platform.name, rule)
    elif None in (platform.peak_flops, platform.memory_bandwidth, platform.link_bandwidth):
        check.wrong("platform", platform.name, "must state peak_flops, memory_bandwidth and link_bandwidth")
    check.at_least("gamma", experiment.gamma, 1)
