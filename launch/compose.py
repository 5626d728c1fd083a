"""From the words of a command line to a checked `Experiment`.

Hydra composes the files of `conf/`; the types are then checked here against the dataclasses, so that one message says
everything that is wrong. Values are given to Hydra as `++key=value`: its own check of keys stops at the first
unknown one and would accept it after a `+`, so keys are checked against the schema instead.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from launch.fetching import fetch_models
from launch.keys import closest, known_keys, nearest_key, typed
from tandem.checks import shown
from tandem.config import Experiment
from tandem.decoding.drafters import drafter_names
from tandem.errors import ConfigurationError
from tandem.validate import is_text, validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
CONFIG_NAME = "config"
PROMPT = "prompt="
MOST_VALUES = 1000  # of a list in a word: Hydra's parser takes seconds for a few thousand
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
# A value, or an element of one, with `~`, which Hydra's grammar has in quotes alone.
_WITH_TILDE = re.compile(r"(?<=[=,\[])([^=,\[\](){}'\"\\]*~[^=,\[\](){}'\"\\]*)")


def groups() -> dict[str, list[str]]:
    """The options of each group in `conf/`, where files that start with `_` are shared parts and no options, and every
    drafter that registers."""
    found = {}
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        files = sorted(folder.rglob("*.yaml"))
        options = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
        found[folder.name] = [option for option in options if not option.rpartition("/")[2].startswith("_")]
    found["drafter"] += [name for name in drafter_names() if name not in found["drafter"]]
    return found


def launchers() -> list[str]:
    """The options of hydra/launcher that come with this project and with Hydra; plugins add theirs."""
    return ["basic", *sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml"))]


def compose(overrides: Sequence[str], download: bool = True) -> Experiment:
    """The experiment that `key=value` words describe. Raises `ConfigurationError` with all that is wrong.

    What is right but for checkpoints that `model.download` asks for has them fetched, unless `download` is false.

    A prompt is text as it stands, brackets, quotes and line ends included; all other values are in Hydra's grammar, and
    `~` may be without quotes.
    """
    problems: list[str] = []
    choices, values = _sort(overrides, problems)
    known = _known(tuple(choices), problems)
    accepted = []
    for key, word in values:
        if key in known or key.startswith("hydra"):
            accepted.append(word)
        else:
            inside = next((name for name in known if name.startswith(f"{key}.")), None)
            if inside:
                problems.append(f"{key} is a group of keys: set one of them, as {inside}")
            else:
                problems.append(f"unknown key {key}{nearest_key(key, [*known, *groups()])}")
    return _experiment(_prompted(_composed(choices + accepted, problems), overrides), problems, download)


def compose_all(jobs: Sequence[Sequence[str]], download: bool = True) -> list[Experiment]:
    """The experiments of several jobs. Raises `ConfigurationError` with what is wrong with any of them."""
    experiments, problems = [], []
    for job in jobs:
        try:
            experiments.append(compose(job, download))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return experiments


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The keys, not groups, that the words set; what cannot be read is none."""
    return [key for key, _ in _sort(overrides, [])[1]]


def sources(overrides: Sequence[str]) -> dict[str, str]:
    """The keys that take their value from another one, and which, where words that can be read say no other."""
    from omegaconf import OmegaConf

    choices, values = _sort(overrides, [])
    raw = OmegaConf.to_container(_unresolved((*choices, *(word for _, word in values))), resolve=False)
    found = {key: match[1] for key, value in _leaves(raw, "") if (match := _INTERPOLATION.fullmatch(str(value)))}
    rates = cast(dict[str, Any], raw)["scale"]["rates"]  # which train.rates starts from, see `_experiment`
    given = cast(dict[str, Any], raw)["train"].get("rates", {})
    return found | {f"train.rates.{row}": f"scale.rates.{row}" for row in rates if row not in given}


def _leaves(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def from_container(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a composed and resolved configuration, which may be Hydra's own of `for_hydra(overrides)`.
    Raises `ConfigurationError` with all that is wrong."""
    if not isinstance(data, Mapping):
        raise ConfigurationError([f"not a configuration: {data!r:.60}"])
    return _experiment(_prompted(data, overrides), [], download=True)


def _prompted(data: Mapping[str, Any], overrides: Sequence[str]) -> Mapping[str, Any]:
    """The configuration with the prompt of the words, which Hydra has not seen."""
    prompts = [word.removeprefix(PROMPT) for word in overrides if word.startswith(PROMPT)]
    return {**data, "prompt": prompts[-1].replace("${", "\\${")} if prompts else data  # OmegaConf's own escape


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a multirun, as the overrides of each, in the order in which Hydra runs them.

    A prompt is text here too: a comma in it makes no grid.
    """
    axes = []
    for word in overrides:
        if word.startswith(PROMPT):
            axes.append([word])
            continue
        word = _without_glob(_tilde_quoted(word))
        parsed = _parse(word)
        if isinstance(parsed, str):
            raise ConfigurationError([parsed])
        if parsed.is_sweep_override() and parsed.key_or_group.startswith("hydra"):
            said = f"{parsed.key_or_group} has one value for a whole sweep; with a comma it needs quotes"
            raise ConfigurationError(
                [f"{word}: {said}: '{parsed.key_or_group}=\"{parsed.input_line.partition('=')[2]}\"'"]
            )
        if parsed.is_discrete_sweep():
            axes.append([f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()])
        else:
            axes.append([word])
    return [list(job) for job in itertools.product(*axes)]


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """The same overrides but for prompts, all in the form that Hydra accepts without checking keys itself."""
    problems: list[str] = []
    overrides = [word if word.startswith(PROMPT) else _without_glob(word) for word in overrides]
    choices, values = _sort(overrides, problems, sweeps=True)
    if problems:
        raise ConfigurationError(problems)
    return choices + [word for _, word in values]


def quoted(text: str) -> str:
    """A text as a value in Hydra's grammar that stands for just this text."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes().replace("${", "\\${")


def to_yaml(experiment: Experiment) -> str:
    """The whole configuration, resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(experiment))


def _parse(word: str) -> Any:
    """Hydra's reading of one override, or the problem with it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not is_text(word):
        return f"{word!r} holds bytes that are not UTF-8, or half of a surrogate pair"
    if (values := 1 + _QUOTED.sub("", word).count(",")) > MOST_VALUES:
        return f"{shown(word)} has {values:,} values, and a word of the command line at most {MOST_VALUES:,}"
    try:
        parsed = OverridesParser.create().parse_override(word)
        if isinstance(value := parsed.value(), int):
            float(value)  # which Hydra may make of it
        return parsed
    except (ValueError, OverflowError, RecursionError):  # of numbers with hundreds of digits, and of lists in lists
        return f"{shown(word)} has a number that is too long, or values in values too deep"
    except HydraException:
        return f"cannot read {shown(word)}: write key=value, and quote a value with special characters: 'key=\"a, b\"'"


def _without_glob(word: str) -> str:
    """`GROUP=glob(…)` as the options that it names: to Hydra every file of the group is one."""
    from hydra.core.override_parser.types import ValueType

    parsed = _parse(word)
    if isinstance(parsed, str) or parsed.value_type is not ValueType.GLOB_CHOICE_SWEEP:
        return word
    options = groups().get(parsed.key_or_group)
    if options is None:
        raise ConfigurationError([f"{word}: glob is of a group's options: {', '.join(sorted(groups()))}"])
    found = parsed.value().filter(sorted(options))
    if not found:
        raise ConfigurationError([f"{word}: names none of {', '.join(sorted(options))}"])
    return f"{parsed.get_key_element()}={','.join(found)}"


def _tilde_quoted(word: str) -> str:
    """The word with quotes around what has `~` in it, where it cannot be read without."""
    quoted = _WITH_TILDE.sub(r"'\1'", word)
    return quoted if quoted != word and isinstance(_parse(word), str) else word


def _sort(
    overrides: Sequence[str], problems: list[str], sweeps: bool = False
) -> tuple[list[str], list[tuple[str, str]]]:
    """Choices of group options, and values but for prompts as (key, word for Hydra); what is neither goes to the
    problems."""
    options = groups()
    choices: list[str] = []
    values: list[tuple[str, str]] = []
    for word in overrides:
        if word.startswith(PROMPT):
            continue
        word = _tilde_quoted(word)
        parsed = _parse(word)
        if isinstance(parsed, str):
            problems.append(parsed)
            continue
        key, plain = parsed.key_or_group, word.lstrip("+")
        if parsed.is_delete():
            problems.append(f"{word}: a key cannot be deleted; set it to another value, or null where that is allowed")
        elif parsed.package is not None:
            problems.append(f"{word}: a group has one place, so write {key}=... without @")
        elif parsed.is_sweep_override() and not sweeps:
            problems.append(f"{word} asks for several runs: add -m, or write one list as {key}=[...]")
        elif key.startswith("hydra/") and not isinstance(parsed.value(), str):
            problems.append(f"{word}: {key} is the name of a file ({', '.join(launchers())})")
        elif key.startswith("hydra/"):
            choices.append(plain)
        elif key not in options:
            values.append((key, f"++{plain}"))
        elif parsed.is_sweep_override() or parsed.value() in options[key] or plain == "experiment=null":
            choices.append(plain)
        else:
            value = parsed.get_value_element_as_str()
            listed = ", ".join(options[key])
            problems.append(f"{key}={value} is not an option of {key} ({listed}){closest(value, options[key])}")
    return choices, values


def _composed(words: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """What Hydra makes of the words, resolved; a refusal goes to the problems, and the defaults stand in for it."""
    data, problem = _composed_once(tuple(words))
    if problem is None:
        return data
    problems.append(problem)
    return _composed([], problems)


def _unresolved(words: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of choices and values, before interpolations are resolved."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    values = tuple(word for word in words if word.startswith("++") and not word.startswith("++hydra"))
    # Reading files and finding defaults is most of the time, and the points of a sweep have it in common. Hydra
    # applies values last as well, by this same function.
    config = copy.deepcopy(_files(tuple(word for word in words if word not in values)))
    ConfigLoaderImpl._apply_overrides_to_config([_parse(word) for word in values], config)
    return config


def _composed_once(words: tuple[str, ...]) -> tuple[dict[str, Any], str | None]:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return cast(dict[str, Any], OmegaConf.to_container(_unresolved(words), resolve=True)), None
    except (RecursionError, HydraException, OmegaConfBaseException) as error:
        if "RecursionError" in repr(error):  # OmegaConf makes one of its own of it, about a key that was not set
            return {}, f"{shown(' '.join(words))}: values that refer to each other in a circle, or are nested too deep"
        if not words:
            raise
        return {}, _first_lines(error)


def _known(choices: tuple[str, ...], problems: list[str]) -> list[str]:
    """Every key that there is with these choices of group options, which the points of a sweep mostly have in common;
    what is wrong with the choices goes to the problems."""
    keys, found = _keys(choices)
    problems += found
    return keys


@lru_cache(maxsize=64)
def _keys(choices: tuple[str, ...]) -> tuple[list[str], list[str]]:
    problems: list[str] = []
    return known_keys(_composed(choices, problems)), problems


@lru_cache(maxsize=64)
def _files(words: tuple[str, ...]) -> DictConfig:
    """What Hydra composes from the files of conf/, not resolved yet."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore

    # A drafter needs no file in conf/.
    for name in drafter_names():
        if not (CONF / "drafter" / f"{name}.yaml").exists():
            ConfigStore.instance().store(name, {"name": name, "drafters": [name]}, group="drafter")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose(CONFIG_NAME, overrides=list(words))


def _first_lines(error: Exception) -> str:
    """The gist of Hydra's or OmegaConf's message: the key, and the first lines of the error and of its cause."""
    said = [str(problem).strip().partition("\n")[0] for problem in (error, error.__cause__) if problem]
    text = ": ".join(dict.fromkeys([*filter(None, [getattr(error, "full_key", None), *said])]))
    launcher = re.search(r"'hydra/launcher/(.*)'", text)
    return text + closest(launcher[1], launchers()) if launcher else text


def _experiment(data: Mapping[str, Any], problems: list[str], download: bool) -> Experiment:
    experiment = typed(data, problems)
    experiment.train.rates = {**experiment.scale.rates, **experiment.train.rates}
    problems += validate(experiment)
    # Nothing is fetched for a configuration that is refused, and of a checkpoint more can be checked once it is here.
    if download and not problems and fetch_models(experiment):
        problems += validate(experiment)
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return experiment
