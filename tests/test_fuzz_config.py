"""Random command lines: each composes, or is refused in words that name what was set, within two seconds.

    TANDEM_FUZZ=10000 uv run pytest tests/test_fuzz_config.py

runs as many examples of each kind as the number says, others than at the last run.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.compose import compose, expand, groups
from launch.experiment import build
from launch.identity import configuration_hash
from launch.keys import known_keys
from tandem.config import Experiment, Job
from tandem.errors import ConfigurationError, UserError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = int(os.environ.get("TANDEM_FUZZ", "30"))
pytestmark = pytest.mark.timeout(max(900, 2 * EXAMPLES))
SLOWEST_S = 2.0  # of processor time: a loaded machine is not ours to judge
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="TANDEM_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

GROUPS = groups()
KEYS = [
    *known_keys(asdict(Experiment())),
    "scale.models.bison.d_model",
    "scale.pretrain.bison.steps",
    "train.rates.eagle",
]
NUMBERS = ["0", "-0", "1", "-1", "2", "3.5", "-0.0", "1e-320", "1e400", "-1e9", "nan", "inf", "-inf", "1_000", "0x10"]
NUMBERS += [str(2**31), str(2**63), str(-(2**64)), "9" * 400, "1" + "0" * 5000, "007", ".5", "5.", "1e"]
WORDS = [
    "null",
    "true",
    "False",
    "yes",
    "on",
    "~",
    "''",
    '""',
    "?",
    "???",
    "auto",
    "list",
    "all",
    "run",
    "bison",
    "tiny",
]
UNITS = ["10s", "3 GB", "5%", "1,000", "2k", "1h30", "64 tokens", "1e3 steps", "½", "٣", "\uff11"]
BROKEN = [
    "[",
    "]",
    "{",
    "}",
    "[1",
    "{a:",
    "{a:1",
    "[1,,2]",
    "{1:2}",
    "{a:{b:{c:d}}}",
    "[[[[]]]]",
    "a: b",
    "- a",
    "&a *a",
]
BROKEN += ["!!python/object:os.system", "'", '"', "'a", "\\", "a\\", "a=b", "=", "a,b", "choice(1,2)", "range(1,3)"]
BROKEN += ["interval(0,1)", "glob(*)", "shuffle(1,2)", "sort(3,1)", "int('a')", "str(1)", "float(1)", "extend_list(1)"]
BROKEN += ["[" * 300 + "]" * 300, "{a:" * 300 + "1" + "}" * 300, "a" * 5000, "[" + "1," * 3000 + "1]"]
REFERENCES = ["${seed}", "${nothing}", "${a.b.c}", "${", "${}", "${seed", "${.seed}", "${..seed}", "${oc.env:HOME}"]
REFERENCES += [
    "${oc.env:NOT_THERE}",
    "${oc.env:NOT_THERE,3}",
    "${nope:1}",
    "${${seed}}",
    "${seed}${seed}",
    "${oc.decode:'['}",
]
REFERENCES += ["${oc.create:{a:1}}", "${oc.dict.keys:train}", "${train}", "${hydra:runtime.cwd}", "\\${seed}", "$seed"]
TEXTS = [
    "é",
    "名前",
    "\u202e",
    "\x00",
    "\x1b[31m",
    "\n",
    "\t",
    " ",
    "a b",
    "\udce9",
    "\ud83d",
    "😀",
    "a" * 256,
    "../x",
    "/",
    "~nobody/x",
]

plain = st.sampled_from(NUMBERS + WORDS + UNITS + BROKEN + REFERENCES + TEXTS)
numbers = st.one_of(st.integers(), st.floats()).map(str)
values = st.one_of(
    plain,
    numbers,
    st.text(max_size=20),
    st.text("[]{}()'\"\\,:=~$#&*!|>%@` .ab01", max_size=12),
    st.lists(plain, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    st.tuples(st.sampled_from(["a", "steps", "0"]), plain).map(lambda pair: f"{{{pair[0]}:{pair[1]}}}"),
)


@st.composite
def keys(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(KEYS))
    match draw(st.integers(0, 11)):
        case 0:
            return key + "." + draw(st.sampled_from(["x", "0", "steps", "a.b.c.d", "_target_", ""]))
        case 1:
            at = draw(st.integers(0, len(key)))
            return (
                key[:at]
                + draw(st.sampled_from(["", "x", ".", "_", "é", "-", "[0]", " ", "/", "@", "$"]))
                + key[at + 1 :]
            )
        case 2:
            return key.rpartition(".")[0] or key
        case 3:
            return draw(st.sampled_from(["+", "++", "~"])) + key
        case 4:
            return draw(st.sampled_from(["hydra.job.chdir", "hydra.run.dir", "hydra.nope", "hydra/launcher", "hydra"]))
        case 5:
            return draw(st.text(max_size=8))
    return key


@st.composite
def choices(draw: st.DrawFn) -> str:
    group = draw(st.sampled_from(sorted(GROUPS)))
    return f"{group}={draw(st.one_of(st.sampled_from(GROUPS[group]), plain))}"


words = st.one_of(st.tuples(keys(), values).map("=".join), choices(), st.text(max_size=15))


def seconds_alone(call: str, line: list[str]) -> float:
    """Of the processor, in a process of its own. Hydra's parser remembers all that it has read: after thousands of
    lines it is slower than any user's."""
    program = f"""
import json, sys, time
from launch.compose import compose, expand
from tandem.errors import ConfigurationError
line = json.loads(sys.argv[1])
began = time.process_time()
try:
    {call}
except ConfigurationError:
    pass
print(time.process_time() - began)
"""
    command = [sys.executable, "-c", program, json.dumps(line)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def tried(line: list[str], start: tuple[str, ...] = ("experiment=debug",)) -> str:
    """What the refusal says; empty if there is none."""
    began, said, problems = time.process_time(), "", []
    try:
        experiment = compose([*start, *line], download=False)
        json.dumps(asdict(experiment)).encode()
        configuration_hash(experiment)
        if experiment.job in (Job.run, Job.speed):
            try:
                build(experiment)
            except UserError as error:
                said, problems = str(error), getattr(error, "problems", [])
    except ConfigurationError as error:
        said, problems = str(error), error.problems
    assert all(problem.strip() for problem in problems), line
    assert bool(problems) or not said.startswith("configuration refused"), line
    spent = time.process_time() - began
    assert spent < SLOWEST_S or seconds_alone("compose(line, download=False)", [*start, *line]) < SLOWEST_S, line
    assert len(said) < 20_000, line
    return said


@fuzzed
@given(st.lists(words, min_size=1, max_size=4))
def test_any_line_is_composed_or_refused(line):
    tried(line)


@fuzzed
@given(st.sampled_from(KEYS), values)
def test_a_refusal_names_the_key_or_the_word(key, value):
    word = f"{key}={value}"
    said = tried([word])
    named = (key, key.rpartition(".")[2], key.partition(".")[0], repr(word), word[:40])
    assert not said or any(name in said for name in named), said


@fuzzed
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True), st.booleans())
def test_cycles_are_refused(found, closed):
    """`a=${b} b=${a}`, or a chain that ends."""
    others = [*found[1:], found[0]]
    line = [f"{key}=${{{other}}}" for key, other in zip(found, others, strict=True)]
    said = tried(line if closed else line[:-1])
    assert said or not closed


@fuzzed
@given(st.lists(words, min_size=1, max_size=3))
def test_any_grid_is_expanded_or_refused(line):
    began = time.process_time()
    with suppress(ConfigurationError):
        expand(line)
    assert time.process_time() - began < SLOWEST_S or seconds_alone("expand(line)", line) < SLOWEST_S
