"""The text of `--help`, from the files of `conf/` and the schema."""

from __future__ import annotations

import json
import textwrap
from dataclasses import MISSING, Field, fields
from enum import Enum
from typing import Any

import yaml

from launch.compose import CONF, CONFIG_NAME, compose, groups, launchers
from tandem.config import Experiment

EXAMPLES = (
    ("the main job: train the tandem pair, measure it, write a report", "model=tandem_bison_gecko train=distil"),
    ("the paper's table 2: speed with SPEED, blocks of 7", "experiment=paper/table2"),
    ("what would be run, and what is done already", "scale=tiny train=ce train.steps=50 gamma=3 dry_run=true"),
)
ABOUT = """\
Tandem Transformers (arXiv 2402.08644): a small secondary model that attends to the states of a large primary one,
trained, measured and reported by one command. Finished steps are found in the store under runs_dir, not repeated."""


def usage(program: str) -> str:
    """Groups with their options, top-level keys with their defaults, and three commands."""
    config = yaml.safe_load((CONF / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8"))
    chosen = {name: option for entry in config["defaults"] if isinstance(entry, dict) for name, option in entry.items()}
    lines = [f"usage: {program} [group=option ...] [key=value ...] [-m] [--cfg job]", "", ABOUT, ""]
    lines.append("Groups (group=option; * is the default):")
    for group, options in groups().items():
        marked = ", ".join(f"{option}*" if option == chosen.get(group) else option for option in options)
        lines += textwrap.wrap(f"{group:<12}{marked}", 110, initial_indent="  ", subsequent_indent=" " * 14)
    own = ", ".join(name for name in launchers() if name != "basic")
    lines.append(f"  hydra/launcher  basic* (one after the other), {own}, or a plugin that is installed; used with -m")
    lines += ["", "Keys (key=value), with their defaults:"]
    usual = compose([])
    lines += [f"  {spec.name:<12}{_shown(getattr(usual, spec.name))}" for spec in _top_level_keys()]
    lines.append("A key inside a group is set by its dotted name: train.steps=200, eval.gammas=[2,4]")
    lines += ["", "Options:", "  -m, --multirun  one run for each combination of values: gamma=2,4,7 -m"]
    lines += ["  -m +sweep=NAME  a grid with its question, from sweeps/questions/; +sweep=list shows them"]
    lines += ["  --cfg job       print the whole configuration and stop", "  -h, --help      print this and stop", ""]
    lines.append("Examples:")
    for purpose, words in EXAMPLES:
        lines += [f"  # {purpose}", f"  {program} {words}"]
    return "\n".join(lines)


def _top_level_keys() -> list[Field[Any]]:
    return [spec for spec in fields(Experiment) if spec.default is not MISSING]


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, str) else json.dumps(value)
