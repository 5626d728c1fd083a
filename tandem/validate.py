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
    PairConfig,
    PrimaryMode,
    ProjectionInit,
    Rates,
    ScaleConfig,
    SideConfig,
    Source,
    TrackingConfig,
    TrainConfig,
)
from tandem.data.prompts import PROMPT_SETS, prompt_file
from tandem.decoding.drafters import head_names
from tandem.model.families import family_names
from tandem.model.formats.hub import is_name, is_revision, may_be_name
from tandem.pair import CHECKPOINTS, STAND_INS, decoder_of, sides, to_fetch
from tandem.validate_drafters import check_drafters, check_stopping

LARGEST_SEED = 2**31 - 1

# Weights & Biases' own rules, which it says only once a run is under way: characters of a tag and of a project.
TAG_LENGTH, PROJECT_LENGTH, NOT_IN_PROJECTS = 64, 128, "/\\#?%:"

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
    if experiment.runs is not None and experiment.job is not Job.compare:
        check.wrong("runs", experiment.runs, f"is read by job=compare, and not by job={experiment.job}")
    if not experiment.runs_dir:
        check.wrong("runs_dir", experiment.runs_dir, "must name a directory")
    if experiment.prompt is not None and not is_text(experiment.prompt):
        check.problems.append("prompt holds bytes that are not UTF-8, or half of a surrogate pair")
    if experiment.prompt is not None and experiment.job is not Job.generate:
        check.problems.append(f"prompt is read by job=generate, and not by job={experiment.job}")
    if experiment.job is Job.generate and not experiment.prompt:
        check.problems.append('job=generate needs a prompt that is not empty, as in prompt="def main():"')
    _scale(experiment.scale, check)
    decoders = _pair(experiment, check)
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
        _decoder(f"scale.models.{name}", decoder, check)
    for name, optimizer in scale.pretrain.items():
        _optimizer(f"scale.pretrain.{name}", optimizer, check)
        if name not in scale.models:
            check.wrong("scale.pretrain", name, f"is not a model of scale.models{nearest(name, scale.models)}")
    _optimizer("scale.further", scale.further, check)
    check.at_least("scale.distil_steps", scale.distil_steps, 1)
    _rates("scale.rates", scale.rates, check)


def _decoder(key: str, decoder: DecoderConfig, check: Checks) -> None:
    sizes = ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_ff", "vocab_size")
    # A list, not a generator: every size is to be checked.
    if all([check.at_least(f"{key}.{size}", getattr(decoder, size), 1) for size in sizes]):
        which = "num_heads" if decoder.head_size is None else "head_size"
        if decoder.head_size is None and decoder.d_model % decoder.num_heads:
            check.wrong(f"{key}.num_heads", decoder.num_heads, f"must divide d_model={decoder.d_model}")
        elif decoder.head_dim < 2 or decoder.head_dim % 2:
            rule = f"makes heads of {decoder.head_dim} dimensions, and rotary positions need an even number"
            check.wrong(f"{key}.{which}", getattr(decoder, which), rule)
        elif not 0 < decoder.rotary_fraction <= 1 or decoder.rotary_dim < 2 or decoder.rotary_dim % 2:
            rule = f"must turn an even number of a head's {decoder.head_dim} dimensions, two or more"
            check.wrong(f"{key}.rotary_fraction", decoder.rotary_fraction, rule)
        if decoder.num_heads % decoder.num_kv_heads:
            check.wrong(f"{key}.num_kv_heads", decoder.num_kv_heads, f"must divide num_heads={decoder.num_heads}")
    check.positive(f"{key}.rope_theta", decoder.rope_theta)
    check.positive(f"{key}.norm_eps", decoder.norm_eps)
    check.at_least(f"{key}.global_every", decoder.global_every, 0)
    for name in ("window", "context_length"):
        if getattr(decoder, name) is not None:
            check.at_least(f"{key}.{name}", getattr(decoder, name), 1)
    for name in ("rope_factor", "rope_original_length", "embedding_scale"):
        check.positive(f"{key}.{name}", getattr(decoder, name))
    for name in ("local_rope_theta", "query_scale", "attention_softcap", "logits_softcap", "rope_attention_factor"):
        if getattr(decoder, name) is not None:
            check.positive(f"{key}.{name}", getattr(decoder, name))
    if decoder.rope_low_freq_factor >= decoder.rope_high_freq_factor:
        rule = f"must be below rope_high_freq_factor={decoder.rope_high_freq_factor}"
        check.wrong(f"{key}.rope_low_freq_factor", decoder.rope_low_freq_factor, rule)
    families = family_names()
    if decoder.family not in families:
        rule = f"is not one of {', '.join(families)}{nearest(decoder.family, families)}"
        check.wrong(f"{key}.family", decoder.family, rule)


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


def _pair(experiment: Experiment, check: Checks) -> dict[str, DecoderConfig]:
    """The decoders of the pair by their roles; none where a side is no model, or is yet to be fetched."""
    pair, scale = experiment.model, experiment.scale
    roles = {"primary": pair.primary, "secondary": pair.secondary}
    if pair.middle is not None:
        roles["middle"] = pair.middle
    good = [role for role, side in roles.items() if _side(f"model.{role}", side, role, scale, check)]
    for role in ("secondary", "middle"):
        if role in roles and roles[role].name == pair.primary.name:
            check.wrong(f"model.{role}.name", roles[role].name, "must differ from model.primary.name")
    if pair.middle is not None and pair.middle.name == pair.secondary.name:
        check.wrong("model.middle.name", pair.middle.name, "must differ from model.secondary.name")
    if len(good) < len(roles) or (pair.download and to_fetch(pair)):
        return {}
    decoders = {role: decoder_of(experiment, side) for role, side in roles.items()}
    if len({decoder.vocab_size for decoder in decoders.values()}) > 1:
        named = ", ".join(f"{roles[role].name} has {decoder.vocab_size}" for role, decoder in decoders.items())
        check.problems.append(f"the models of a pair must share one vocabulary, but {named} (vocab_size)")
    primary, secondary = decoders["primary"], decoders["secondary"]
    _copied_layers(pair.secondary, primary, check)
    if pair.layer_map is not None:
        _layer_map(pair, primary, secondary, check)
    shares = pair.secondary.source is Source.from_primary
    if shares and experiment.train.primary is not PrimaryMode.frozen:
        rule = f"cannot be trained with {pair.secondary.name}, which shares its embedding (model.secondary.source)"
        check.wrong("train.primary", experiment.train.primary.value, rule)
    if experiment.train.projection_init is ProjectionInit.identity and primary.d_model != secondary.d_model:
        widths = f"but {pair.primary.name} has {primary.d_model} and {pair.secondary.name} {secondary.d_model}"
        check.wrong("train.projection_init", "identity", f"needs models of one width (d_model), {widths}")
    return decoders


def _side(key: str, side: SideConfig, role: str, scale: ScaleConfig, check: Checks) -> bool:
    """Whether the side names a model."""
    before = len(check.problems)
    if not side.name or set(side.name) & set("/\\\0 "):
        check.wrong(f"{key}.name", side.name, "must be a name for the tables, without blanks and slashes")
    stand_in, checkpoint = side.source in STAND_INS, side.source in CHECKPOINTS
    if stand_in and side.name not in scale.models:
        check.wrong(f"{key}.name", side.name, f"is not a model of scale={scale.name}{nearest(side.name, scale.models)}")
    elif stand_in and side.name not in scale.pretrain:
        check.wrong(f"{key}.name", side.name, f"has no scale.pretrain.{side.name} to be trained by")
    if checkpoint and side.path is None and side.decoder is None:
        what = "a GGUF file" if side.source is Source.gguf else "a directory with config.json and safetensors files"
        if side.source is Source.llama2c:
            what = "a .bin file of llama2.c"
        check.problems.append(f"{key}.path must name {what}, as {key}.source={side.source.value} says")
    for name in ("path", "revision", "tokenizer", "decoder"):
        if not checkpoint and getattr(side, name) is not None:
            rule = f"is not read by {key}.source={side.source.value}; it is by {', '.join(CHECKPOINTS)}"
            check.wrong(f"{key}.{name}", getattr(side, name) if name != "decoder" else "…", rule)
    _on_hub(key, side, check)
    if side.decoder is not None:
        _decoder(f"{key}.decoder", side.decoder, check)
    if side.source is Source.from_primary:
        if role == "primary":
            check.wrong(f"{key}.source", side.source.value, "is for the other models of the pair")
        if not side.layers:
            check.wrong(f"{key}.layers", side.layers, "must list which layers of the primary to take, from 0")
    elif side.layers is not None:
        check.wrong(f"{key}.layers", side.layers, f"is not read by {key}.source={side.source.value}")
    return len(check.problems) == before


def _on_hub(key: str, side: SideConfig, check: Checks) -> None:
    """A path that is the name of a model on a hub, and the revision of one."""
    if side.source not in CHECKPOINTS or side.path is None:
        return
    named = side.source is Source.huggingface and may_be_name(side.path)
    if named and not is_name(side.path):
        rule = "is no directory here, and no name on a hub, which is ORG/NAME of letters, digits, '-', '_' and '.'"
        check.wrong(f"{key}.path", side.path, rule)
    if side.revision is not None and not named:
        rule = f"is of a name on a hub, and {key}.path={side.path} is none with {key}.source={side.source.value}"
        check.wrong(f"{key}.revision", side.revision, rule)
    elif side.revision is not None and not is_revision(side.revision):
        check.wrong(f"{key}.revision", side.revision, "must be a branch, a tag or a commit of a model on a hub")


def _copied_layers(side: SideConfig, primary: DecoderConfig, check: Checks) -> None:
    if side.source is not Source.from_primary or side.layers is None:
        return
    for position, layer in enumerate(side.layers):
        if not 0 <= layer < primary.num_layers:
            rule = f"must be from 0 to {primary.num_layers - 1}, a layer of the primary"
            check.wrong(f"model.secondary.layers[{position}]", layer, rule)
    if primary.window is not None and primary.global_every:
        rule = "cannot be taken from a primary whose layers have windows of two kinds"
        check.wrong("model.secondary.layers", side.layers, rule)


def _layer_map(pair: PairConfig, primary: DecoderConfig, secondary: DecoderConfig, check: Checks) -> None:
    layer_map, count = pair.layer_map or [], secondary.num_layers
    if not layer_map or len(layer_map) % count:
        rule = f"has {len(layer_map)} entries and must have {count}, one per secondary layer, or a multiple of that"
        check.wrong("model.layer_map", layer_map, rule)
    # A layer of the primary's own may read what it read there, the embedding too.
    first = 0 if pair.secondary.source is Source.from_primary else 1
    for position, layer in enumerate(layer_map):
        least = first if position < count else 0
        if not least <= layer <= primary.num_layers:
            rule = f"must be from {least} to {primary.num_layers}, a number of primary layers"
            check.wrong(f"model.layer_map[{position}]", layer, rule)


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
