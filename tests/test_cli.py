"""The command line as a person meets it: real processes, exit codes, and what they leave behind."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from within import within

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "launch" / "run.py"
HEAVY = ("jax", "flax", "optax", "tensorflow", "seqio", "t5", "wandb")

# Two steps in place of the science: "train" counts to `train.steps` with a checkpoint at each, "report" reads it.
PROGRAM = """
    import sys, time, types
    from dataclasses import dataclass
    from launch.graph import Interrupted, Step

    @dataclass(frozen=True, eq=False, kw_only=True)
    class Train(Step):
        kind = "train"
        steps: int

        def run(self, context):
            checkpoint = context.out / "checkpoint"
            done = int(checkpoint.read_text()) if checkpoint.exists() else 0
            while done < self.steps:
                time.sleep(PAUSE)
                done += 1
                checkpoint.write_text(str(done))
                context.log(step=done)
                context.progress(done, self.steps, loss=1.0)
                if context.should_stop() and done < self.steps:
                    raise Interrupted

    @dataclass(frozen=True, eq=False, kw_only=True)
    class Report(Step):
        kind = "report"
        gamma: int

        def run(self, context):
            (context.out / "total").write_text((context.inputs["model"] / "checkpoint").read_text())

    def build(experiment):
        trained = Train(name="train", steps=experiment.train.steps, size="1M", estimate_s=3.0)
        return [Report(name="report", gamma=experiment.gamma, inputs={"model": trained})]

    sys.modules["launch.experiment"] = types.ModuleType("launch.experiment")
    sys.modules["launch.experiment"].build = build
    from launch.process import command_line
    from launch.run import main
    sys.exit(command_line(main))
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(pause: float = 0.0) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PROGRAM).replace("PAUSE", str(pause))]


def fake(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    """The command line with the two steps above, and without W&B's client unless the words ask for it."""
    call = [*command(), "tracking=disabled", *words]
    return subprocess.run(call, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


def real(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    """`python launch/run.py`, typed in another directory."""
    call = [sys.executable, str(RUN), *words]
    return subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)


def start(tmp_path: Path, *words: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    call = [*command(0.05), "tracking=disabled", *words]
    return subprocess.Popen(call, cwd=tmp_path, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def wait_for(found) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def at_once(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    """`real` in less than two seconds of processor time, which other work on the machine does not count for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = real(tmp_path, *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    return done


def test_help(tmp_path):
    done = at_once(tmp_path, "--help")
    assert done.returncode == 0
    for expected in (
        "tandem_bison_gecko*",
        "distil*",
        "paper/table1",
        "gamma       3",
        "tau         null",
        "name        null",
    ):
        assert expected in done.stdout
    assert done.stdout.count("uv run launch/run.py") == 1 + 3
    assert "_further" not in done.stdout


def test_bad_configuration_is_refused_at_once_and_writes_nothing(tmp_path):
    done = at_once(tmp_path, "train=distill", "gama=3", "gamma=-1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["--bogus", "--cfg", "gamma", "hydra/launcher=nothing", "--config-name=x"])
def test_what_cannot_be_read_is_refused(tmp_path, word):
    done = within(tmp_path, word)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: configuration refused: ")


@pytest.mark.parametrize("job", ["generate", "speed"])
def test_a_prompt_that_fits_no_cache_is_refused_before_anything_runs(tmp_path, job):
    """The package ships the tokenizer of the laptop scale, so that the length is known at once."""
    file, text = tmp_path / "prompts.jsonl", "x = 1; " * 3000
    file.write_text(json.dumps({"prompt": text}), encoding="utf-8")
    given = f'prompt="{text}"' if job == "generate" else f"data.prompts={file}"
    done = within(tmp_path, f"job={job}", given)
    assert done.returncode == 2
    assert re.search(r"prompt has \d+ tokens; .* more than decode.cache_tokens=4096", done.stderr)
    assert list(tmp_path.iterdir()) == [file]


def test_heavy_packages_stay_out(tmp_path):
    program = """
        import contextlib, io, sys
        from launch import run
        from tandem.errors import UserError
        for words in (["--help"], ["--cfg", "job", "scale=tiny"], ["gamma=-1"]):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(UserError):
                run.main(words)
        import launch.graph, launch.store
        print(sorted(set(sys.modules) & set(HEAVY)))
    """
    code = textwrap.dedent(program).replace("HEAVY", repr(HEAVY))
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_whole_configuration_is_shown(tmp_path):
    done = real(tmp_path, "--cfg", "job", "scale=tiny", "train.gamma=[1,2]")
    assert done.returncode == 0
    assert "gamma:\n  - 1\n  - 2\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_graph_and_writes_nothing(tmp_path):
    done = fake(tmp_path, "dry_run=true", "train.steps=3")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["step", "train", "report", "2"]
    assert "to run" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_the_same_again(tmp_path):
    first = fake(tmp_path, "train.steps=3", "scale=tiny", "tracking=offline")
    assert first.returncode == 0, first.stderr
    (directory,) = [path for path in (tmp_path / "runs").iterdir() if path.name != "store"]
    assert directory.name.startswith("tandem_bison_gecko-distil-")
    assert "steps: 3" in (directory / "config.yaml").read_text()
    assert [record["step"] for record in lines(directory / "metrics.jsonl")] == [1, 2, 3]
    second = fake(tmp_path, "train.steps=3", "scale=tiny", "tracking=offline")
    assert second.returncode == 0
    assert second.stderr.count("found") == 2
    assert "running" not in second.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(["store", directory.name])


@pytest.mark.slow
def test_changing_gamma_trains_nothing(tmp_path):
    fake(tmp_path, "train.steps=3", "gamma=5")
    done = fake(tmp_path, "train.steps=3", "gamma=7")
    events = [(entry["event"], entry["step"]) for entry in lines(tmp_path / "runs" / "store" / "log.jsonl")]
    assert events == [("run", "train"), ("run", "report"), ("found", "train"), ("run", "report")], done.stderr


@pytest.mark.slow
def test_a_name_belongs_to_one_configuration(tmp_path):
    assert fake(tmp_path, "name=mine", "train.steps=2").returncode == 0
    assert fake(tmp_path, "name=mine", "train.steps=2").returncode == 0
    other = fake(tmp_path, "name=mine", "train.steps=3")
    assert other.returncode == 2
    assert "holds a run of another configuration" in other.stderr
    assert "steps: 2" in (tmp_path / "runs" / "mine" / "config.yaml").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_goes_on(tmp_path, number, code):
    process = start(tmp_path, "name=mine", "train.steps=40")
    metrics = tmp_path / "runs" / "mine" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(lines(metrics)) >= 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    again = fake(tmp_path, "name=mine", "train.steps=40")
    assert again.returncode == 0
    assert "resuming train" in again.stderr
    assert [record["step"] for record in lines(metrics)] == list(range(1, 41))


def test_second_signal_ends_at_once(tmp_path):
    program = textwrap.dedent(PROGRAM).replace("context.should_stop()", "False").replace("PAUSE", "0.05")
    call = [sys.executable, "-c", program, "tracking=disabled", "name=mine", "train.steps=4000"]
    process = subprocess.Popen(call, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "runs" / "mine" / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


@pytest.mark.slow
def test_killed_run_goes_on(tmp_path):
    process = start(tmp_path, "name=mine", "train.steps=40")
    metrics = tmp_path / "runs" / "mine" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(lines(metrics)) >= 3)
    process.kill()
    process.communicate()
    assert fake(tmp_path, "name=mine", "train.steps=40").returncode == 0
    steps = [record["step"] for record in lines(metrics)]
    assert sorted(set(steps)) == list(range(1, 41))
    assert len(steps) <= 41  # at most the step in flight is logged again


def test_two_runs_at_once_do_each_step_once(tmp_path):
    both = [start(tmp_path, "train.steps=10", f"name={name}") for name in ("one", "two")]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    events = [entry["event"] for entry in lines(tmp_path / "runs" / "store" / "log.jsonl")]
    assert sorted(events) == ["found", "found", "run", "run"]


def test_a_bug_in_a_step_shows_its_traceback(tmp_path):
    call = [sys.executable, "-c", textwrap.dedent(PROGRAM).replace("PAUSE", "1 / 0"), "tracking=disabled"]
    done = subprocess.run(call, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_a_bug_at_one_point_leaves_the_other_points_of_a_multirun_alone(tmp_path):
    program = textwrap.dedent(PROGRAM).replace("PAUSE", "0 if self.steps != 2 else 1 / 0")
    call = [sys.executable, "-c", program, "-m", "train.steps=1,2,3"]
    done = subprocess.run(call, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("ZeroDivisionError") == 1
    events = [(entry["event"], entry["step"]) for entry in lines(tmp_path / "runs" / "store" / "log.jsonl")]
    assert events.count(("run", "report")) == 2


def test_runs_dir_that_is_a_file_is_one_message(tmp_path):
    (tmp_path / "taken").write_text("")
    done = fake(tmp_path, "runs_dir=taken")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot make the directory taken/")
    assert len(done.stderr.splitlines()) == 1


def test_reader_that_goes_away_is_no_error(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(RUN), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""


def test_multirun_runs_every_combination(tmp_path):
    done = fake(tmp_path, "-m", "train.steps=1,2", "gamma=3,4")
    assert done.returncode == 0, done.stderr
    runs = [path for path in (tmp_path / "runs").iterdir() if (path / "config.yaml").exists()]
    assert len(runs) == 4
    events = [(entry["event"], entry["step"]) for entry in lines(tmp_path / "runs" / "store" / "log.jsonl")]
    assert events.count(("run", "train")) == 2
    assert events.count(("run", "report")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


PROMPTS = ("def read(", '"a, b"', "x = ${HOME}", "it's [so]: {a,b}", "one\ntwo \\", "glob(*)", "a=b=~c")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """(prompt, multirun) → exit code, standard output, and standard error of what a process starts with it; one process
    for all, as most of one is its imports."""
    code = """
        import contextlib, io, json, sys
        from launch import run
        from launch.process import command_line
        run.start = lambda experiment, stop: print(ascii(experiment.prompt), experiment.seed)
        found = []
        for words in json.loads(sys.stdin.read()):
            sys.argv[1:] = words
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
                found.append((command_line(run.main), out.getvalue(), said.getvalue()))
        print(json.dumps(found))
    """
    asked = {}
    for prompt in PROMPTS:
        for multirun in (False, True):
            kind = ("-m", "seed=0,1") if multirun else ()
            asked[prompt, multirun] = ["experiment=debug", "job=generate", *kind, f"prompt={prompt}"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=json.dumps(list(asked.values())),
        cwd=tmp_path_factory.mktemp("prompts"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip(asked, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_the_same_text_alone_and_in_a_multirun(started, prompt):
    assert started[prompt, False] == (0, f"{prompt!a} 0\n", "")
    assert started[prompt, True] == (0, f"{prompt!a} 0\n{prompt!a} 1\n", "")


def test_a_multirun_that_cannot_write_says_so_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    for where in ("file/runs", "/proc/runs"):
        done = fake(tmp_path, "-m", "gamma=2,3", f"runs_dir={where}")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: cannot make the directory {where}")
        assert "Traceback" not in done.stderr


def test_a_dry_multirun_writes_nothing(tmp_path):
    done = fake(tmp_path, "-m", "gamma=2,3", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps to run") == 2
    assert list(tmp_path.iterdir()) == []


def test_multirun_is_checked_before_it_starts(tmp_path):
    done = fake(tmp_path, "-m", "train.steps=1", "gamma=3,-4", "tau=0.5,2")
    assert done.returncode == 2
    assert "gamma=-4" in done.stderr
    assert "tau=2" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_terminal_shows_a_live_line(tmp_path):
    leader, follower = pty.openpty()
    call = [*command(0.05), "tracking=disabled", "train.steps=20"]
    process = subprocess.Popen(call, cwd=tmp_path, env=ENVIRONMENT, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(timeout=30) == 0
    assert b"\r\x1b[2K" in shown
    assert b"loss 1  left" in shown
