"""job=evaluate: which steps there are, what they mean, the tables, and one whole run on invented data."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import job_evaluate
from launch.compose import compose
from launch.experiment import build
from launch.graph import topological
from launch.steps.evaluate import Contestant, Evaluate, cut
from launch.store import write_json_atomic
from sweeps.downstream import downstream_tables, quality_against_speed, shaped
from sweeps.tables import to_text
from tandem.errors import ConfigurationError, EnvironmentFailure
from tasks import invented, registry
from tasks.example import Example

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["experiment=debug", "job=evaluate", "eval.measures=[]"]


@pytest.fixture
def data(tmp_path) -> Path:
    directory = tmp_path / "data"
    invented.write(directory)
    return directory


def steps(data: Path, *words: str):
    experiment = compose([*WORDS, f"tasks.data_dir={data}", *words])
    return {step.name: step for step in job_evaluate.build(experiment) if step.kind != "examples"}


def test_a_task_is_read_once_and_answered_by_every_model(data):
    made = steps(data, "eval.tasks=[boolq_v1]")
    models = [
        "gecko",
        "gecko_ce",
        "tandem_ce",
        "gecko_distil",
        "tandem_distil",
        "otter",
        "bison",
        "tandem_distil_speed",
    ]
    assert list(made) == [f"boolq_v1 {model}" for model in models]
    experiment = compose([*WORDS, f"tasks.data_dir={data}", "eval.tasks=[boolq_v1,cb_v1]"])
    # A damaged file is known before the first model is asked.
    assert [step.name for step in job_evaluate.build(experiment)][:2] == ["examples of boolq_v1", "examples of cb_v1"]
    kinds = [step.kind for step in topological(made.values())]
    assert kinds.count("examples") == 1
    assert made["boolq_v1 tandem_distil_speed"].inputs["reference"] is made["boolq_v1 bison"]


def test_what_speed_writes_is_held_against_the_primary_that_verifies_it(data):
    """After joint training that is the tandem's own, which is evaluated too."""
    made = steps(data, "eval.tasks=[boolq_v1]", "train=joint_both")
    own = made["boolq_v1 bison_of_tandem_distil"]
    assert made["boolq_v1 tandem_distil_speed"].inputs["reference"] is own
    assert own.inputs["model"] is made["boolq_v1 tandem_distil"].inputs["model"]
    assert own.contestant.width == made["boolq_v1 tandem_distil_speed"].contestant.width
    assert own.fingerprint != made["boolq_v1 bison"].fingerprint


def test_heads_that_only_draft_are_not_evaluated(data):
    assert set(steps(data, "eval.tasks=[boolq_v1]", "drafter=all")) == set(steps(data, "eval.tasks=[boolq_v1]"))


def test_steps_mean_what_changes_their_results(data):
    before = steps(data, "eval.tasks=[boolq_v1]")

    def changed(*words: str) -> set[str]:
        after = steps(data, "eval.tasks=[boolq_v1]", *words)
        return {name for name in before if before[name].fingerprint != after[name].fingerprint}

    assert changed("tracking=disabled") == set()
    assert changed("eval.standalone_gammas=[2]") == {"boolq_v1 tandem_ce", "boolq_v1 tandem_distil"}
    assert changed("gamma=5") == {"boolq_v1 bison", "boolq_v1 tandem_distil_speed"}
    assert changed("eval.limit=1") == changed("eval.shots=0") == changed("eval.seed=1") == set(before)
    path = data / "superglue/BoolQ/val.jsonl"
    path.write_text(path.read_text().replace("Sol", "Sal"))
    assert changed() == set(before)


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("wmt22_en_de_v1", "wmt22/sources/generaltest2022.en-de.src.en"),
        ("wmt22_en_de_v1", "wmt22/references/generaltest2022.en-de.ref.A.de"),
        ("boolq_v1", "fewglue/BoolQ/train.jsonl"),
        ("natural_questions_v1", "nq_open/NQ-open.train.jsonl"),
    ],
)
def test_a_corrected_file_is_evaluated_again(data, task, file):
    def fingerprints() -> dict[str, str]:
        return {name: step.fingerprint for name, step in steps(data, f"eval.tasks=[{task}]").items()}

    before, path = fingerprints(), data / file
    path.write_text(path.read_text(encoding="utf-8").replace("o", "oo"), encoding="utf-8")
    after = fingerprints()
    assert before.keys() == after.keys()
    assert not before.items() & after.items()


def prepared(folder: Path) -> None:
    """A dataset as TensorFlow Datasets lays it out, with shards that nothing here reads."""
    folder.mkdir(parents=True)
    splits = [{"name": name, "shardLengths": ["2", "1"], "numBytes": "9"} for name in ("test", "validation", "train")]
    about = {"name": folder.parent.name, "version": folder.name, "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(about))
    (folder / "features.json").write_text("{}")
    for split in splits:
        for shard in ("00000-of-00002", "00001-of-00002"):
            (folder / f"{folder.parent.name}-{split['name']}.tfrecord-{shard}").write_text(split["name"])


def test_a_changed_folder_of_tensorflow_datasets_is_evaluated_again(data):
    folder = data / "lambada/1.0.0"
    prepared(folder)

    def fingerprint(*words: str) -> str:
        return steps(data, "eval.tasks=[lambada_v1]", *words)["lambada_v1 bison"].fingerprint

    before, alone = fingerprint(), fingerprint("eval.shots=0")
    for path in sorted(folder.iterdir()):
        content = path.read_text()
        path.write_text(content.replace(" ", "  ") if path.suffix == ".json" and " " in content else content + " ")
        # A split that is not read is no part of it.
        assert (fingerprint() != before) == ("train" not in path.name), path.name
        assert (fingerprint("eval.shots=0") != alone) == ("train" not in path.name and "validation" not in path.name)
        path.write_text(content)
    assert (fingerprint(), fingerprint("eval.shots=0")) == (before, alone)
    (folder / "lambada-test.tfrecord-00001-of-00002").unlink()
    with pytest.raises(EnvironmentFailure, match=r"lambada-test\.tfrecord-00001-of-00002 is missing: .*dataset_info"):
        fingerprint()


def test_a_corpus_of_tensorflow_datasets_is_read_again_when_it_changes(tmp_path):
    folder = tmp_path / "notes/1.0.0"
    prepared(folder)

    def fingerprint() -> str:
        experiment = compose(["experiment=debug", "data=tfds", "data.name=notes:1.0.0", f"data.data_dir={tmp_path}"])
        return next(step for step in topological(build(experiment)) if step.kind == "corpus").fingerprint

    before = fingerprint()
    (folder / "notes-train.tfrecord-00001-of-00002").write_text("other")
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("task", "file", "content", "named"),
    [
        ("boolq_v1", "superglue/BoolQ/val.jsonl", "", r"BoolQ/val\.jsonl: holds no question of boolq_v1"),
        ("mbpp_v1", "mbpp/mbpp.jsonl", '{"task_id": 600}\n', r"mbpp\.jsonl: holds no question of mbpp_v1"),
        (
            "tydiqa_english_v1",
            "tydiqa_goldp/english_tydiqa_dev.json",
            '{"data": []}',
            r"english_tydiqa_dev\.json: holds",
        ),
    ],
)
def test_a_file_without_a_question_is_named_before_anything_is_trained(data, capsys, task, file, content, named):
    (data / file).write_text(content)
    with pytest.raises(EnvironmentFailure, match=named) as refused:
        steps(data, f"eval.tasks=[{task}]", "eval.mbpp.execute=true")
    assert refused.value.exit_code == 1
    if task != "mbpp_v1":
        suite = registry.find(task).suite
        assert not any(name.startswith(task) for name in steps(data, f"eval={suite}"))
        assert f"holds no question of {task}" in capsys.readouterr().err


def test_what_is_missing_is_left_out_of_a_suite_and_refused_by_name(data, capsys):
    (data / "superglue/ReCoRD/val.jsonl").unlink()
    made = steps(data, "eval=superglue")
    assert "boolq_v1 bison" in made
    assert not any("record" in name for name in made)
    said = capsys.readouterr().err
    assert "left out record_v1" in said
    assert "download_and_prepare" in said
    with pytest.raises(EnvironmentFailure, match="record_v1: its questions are missing"):
        steps(data, "eval.tasks=[record_v1]")


def test_where_nothing_is_there_one_task_is_told_of_and_the_folder_that_has_them(data):
    with pytest.raises(EnvironmentFailure) as raised:
        steps(data.parent, "eval=superglue")
    said = str(raised.value).splitlines()
    assert sum("are missing" in line for line in said) == 1
    assert said[-2:] == ["and nothing of 7 other tasks", f"{data} has some: tasks.data_dir={data}"]


def test_programs_are_not_run_unless_asked(data, capsys):
    with pytest.raises(ConfigurationError, match=r"eval\.mbpp\.execute=true"):
        steps(data, "eval=mbpp")
    assert "mbpp_v1 bison" in steps(data, "eval=mbpp", "eval.mbpp.execute=true")
    assert not any("mbpp" in name for name in steps(data, "eval=all"))
    assert "left out mbpp_v1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval=quick"], "job=evaluate needs eval="),
        (["eval.tasks=[bolq_v1]"], "did you mean boolq_v1"),
        (["eval.tasks=[superglu]"], "did you mean superglue"),
        (["eval.tasks=[boolq_v1]", "eval.max_length=100"], "eval.max_length=100 must be at least 640"),
        (["eval.tasks=[boolq_v1]", "eval.batch_size=0"], "eval.batch_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(data, words, said):
    with pytest.raises(ConfigurationError, match=said.replace(".", r"\.").replace("[", r"\[")):
        steps(data, *words)


def test_the_list_names_every_task_without_jax_or_tensorflow(data):
    code = "import sys; sys.path[0] = sys.argv.pop(1); from launch.run import main; main(); "
    code += "print(sorted({'jax', 'tensorflow', 'seqio', 't5'} & set(sys.modules)))"
    words = ["job=evaluate", "eval=list", f"tasks.data_dir={data}"]
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), *words], capture_output=True, text=True, check=True)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    listed = {line.split()[0]: line for line in lines[1:-1]}
    assert list(listed) == registry.names()
    assert "superglue/BoolQ/val.jsonl" in listed["boolq_v1"]
    assert "rank" in listed["boolq_v1"]
    assert "pass@1" in listed["mbpp_v1"]


def test_the_list_names_a_damaged_file_and_all_other_tasks(data):
    (data / "superglue/BoolQ/val.jsonl").write_text('{"idx": 0, "passage": ')
    (data / "squad_v2/dev-v2.0.json").write_text("")
    listed = {
        line.split()[0]: line
        for line in job_evaluate.listing(compose([*WORDS, "eval=list", f"tasks.data_dir={data}"])).splitlines()[1:-1]
    }
    assert list(listed) == registry.names()
    assert "damaged" in listed["boolq_v1"]
    assert "BoolQ/val.jsonl, line 1: not JSON" in listed["boolq_v1"]
    assert "damaged" in listed["squad_v2_v1"]
    assert "damaged" not in listed["copa_v1"]


def test_a_score_that_no_float_holds_is_null_with_a_note(tmp_path):
    step = Evaluate(
        name="lambada_v1 bison",
        info=registry.info("lambada_v1"),
        contestant=Contestant("bison", "decoder"),
        dtype="float32",
        max_length=1024,
        batch_size=2,
        seed=0,
        limit=None,
        shots=1,
    )
    examples = [Example(str(n), "", (), None) for n in range(2)]
    said = [[(-3000.0, True)], [(-1.0, False)]]
    made = step.rows(examples, said, {})
    write_json_atomic(tmp_path / "results.json", made)  # which JSON has no infinity for
    rows = {row["metric"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert rows["accuracy"]["score"] == 50
    assert "note" not in rows["accuracy"]
    assert (rows["perplexity"]["score"], rows["perplexity"]["high"]) == (None, None)
    assert rows["perplexity"]["note"].startswith("inf: ")


def test_a_text_ends_before_its_first_stop_sequence():
    assert cut("one\ntwo. three", ["\n", "."]) == "one"
    assert cut("one. two\nthree", ["\n", "."]) == "one"
    assert cut("one", ["\n"]) == "one"
    assert cut("one", []) == "one"


def row(name: str, task: str, score: float, half: float, suite: str = "superglue", **more) -> dict:
    settings = {"metric": "accuracy", "primary_metric": True, "n": 50, "limit": 50, "shots": 1, "seed": 0}
    ends = {"low": score - half, "high": score + half / 2}
    return {"name": name, "task": task, "suite": suite, "score": score, **ends, **settings, **more}


def test_tables_have_the_papers_shape_with_its_numbers_beside_ours():
    results = {
        "downstream": [
            row("gecko", "boolq_v1", 50.0, 3.0),
            row("bison", "boolq_v1", 60.0, 3.0),
            row("gecko", "rte_v1", 40.0, 4.0),
            row("bison", "rte_v1", 70.0, 4.0),
            {**row("bison", "rte_v1", 1.0, 1.0), "metric": "other", "primary_metric": False},
            row("gecko", "wmt22_en_de_v1", 10.0, 1.0, "wmt22"),
            row("gecko", "wmt22_de_en_v1", 20.0, 1.0, "wmt22"),
            row("bison_speed", "wmt22_de_en_v1", 20.0, 1.0, "wmt22", gamma=3, identical_to_primary=1.0),
        ]
    }
    overview, superglue, wmt22 = downstream_tables(results)
    shown = {row["name"]: row for row in overview.rows}
    assert shown["superglue"]["bison"][0] == 65.0
    assert shown["superglue"]["bison"][1] == pytest.approx(math.hypot(3, 4) / 2)
    assert shown["superglue"]["n"] == 100
    assert shown["wmt22 from English"]["gecko"][0] == 10.0
    assert shown["wmt22 into English"]["gecko"][0] == 20.0
    text = to_text(overview)
    assert "65.0±2.5" in text
    assert "81.5" in text  # the paper's Bison on SuperGLUE
    assert "another model" in text
    assert "eval.limit" in text
    assert "of its responses all are the primary's" in text.replace("\n", " ")
    names = [row["name"] for row in superglue.rows]
    assert names == ["boolq", "  paper", "rte", "  paper", "mean"]
    assert superglue.rows[1]["bison"] == (pytest.approx(88.8), None)
    assert [row["name"] for row in wmt22.rows] == ["wmt22_en_de", "wmt22_de_en", "mean"]


def test_a_tandem_at_several_block_lengths_has_a_column_and_a_point_for_each():
    downstream = [row("gecko", "boolq_v1", 50.0, 3.0), row("bison", "boolq_v1", 60.0, 3.0)]
    downstream += [row("tandem_distil", "boolq_v1", 59.0 - gamma, 3.0, gamma=gamma) for gamma in (1, 3, 7)]
    speeds = [("gecko", None, 5.0), *(("tandem_distil", gamma, 1 + gamma / 4) for gamma in (1, 3, 7))]
    results = {
        "downstream": downstream,
        "standalone": [
            {"name": name, "speedup_decode": speed, **({"gamma": gamma} if gamma else {})}
            for name, gamma, speed in speeds
        ],
        "models": [{"name": "gecko", "role": "secondary"}, {"name": "bison", "role": "primary"}],
    }
    overview = downstream_tables(results)[0]
    assert [column.title.split("\n")[-1] for column in overview.columns][2:] == [
        "n",
        "gecko",
        "bison",
        "γ 1",
        "γ 3",
        "γ 7",
    ]
    (measured,) = [line for line in overview.rows if line["name"] == "superglue"]
    assert [measured[key][0] for key in ("tandem_distil_at 1", "tandem_distil", "tandem_distil_at 7")] == [58, 56, 52]
    (chart,) = quality_against_speed(results)
    assert "tandem_distil: 58.000 at 1.25, 56.000 at 1.75, 52.000 at 2.75." in chart.svg
    assert "secondary to primary: 60.000 at 1, 50.000 at 5." in chart.svg
    assert quality_against_speed({**results, "standalone": []}) == [], "nobody's speed is known"


def test_eight_models_with_wide_intervals_fit_a_line():
    models = [
        "gecko",
        "gecko_ce",
        "tandem_ce",
        "gecko_distil",
        "tandem_distil",
        "otter",
        "bison",
        "tandem_distil_speed",
    ]
    tasks = ["natural_questions_v1", "lambada_v1"]
    rows = [row(name, task, 100.0, 50.0, "gen_tasks", n=6078, metric="em") for task in tasks for name in models]
    for table in downstream_tables({"downstream": rows}):
        assert "…" not in to_text(table)
        assert max(map(len, to_text(table).splitlines())) <= 120


def test_what_was_left_out_is_named_in_the_tables_beside_the_papers_number():
    reason = "its questions are not in tasks.data_dir"
    left_out = [
        {"task": "record_v1", "suite": "superglue", "reason": reason},
        {"task": "mbpp_v1", "suite": "mbpp", "reason": "programs are run only with eval.mbpp.execute=true"},
    ]
    results = {"downstream": [row("bison", "boolq_v1", 60.0, 3.0)], "downstream_left_out": left_out}
    overview, superglue = downstream_tables(results)
    assert [row["name"] for row in overview.rows] == ["superglue, 1 left out", "  paper", "mbpp", "  paper"]
    assert f"Left out: record_v1 ({reason})." in to_text(overview)
    assert "Left out: mbpp_v1 (programs are run only with eval.mbpp.execute=true)." in to_text(overview)
    assert [row["name"] for row in superglue.rows] == ["boolq", "  paper", "record", "  paper", "mean"]
    assert superglue.rows[3]["bison"] == (pytest.approx(92.2), None)
    flat = shaped(results)
    assert flat[0] == {
        "table": "downstream", "task": "superglue", "source": "measured", "metric": None, "n": 50,
        "bison": 60.0, "bison ±": 3.0,
    }  # fmt: skip
    assert flat[1]["source"].startswith("paper (PaLM 2")
    assert flat[1]["bison"] == pytest.approx(81.5)


@pytest.mark.slow
def test_a_whole_run_answers_measures_and_is_not_repeated(data, tmp_path):
    tasks = "boolq_v1,record_v1,lambada_v1,natural_questions_v1,wmt22_de_en_v1,mbpp_v1"
    call = [sys.executable, str(ROOT / "launch/run.py"), *WORDS, f"tasks.data_dir={data}", f"eval.tasks=[{tasks}]"]
    call += ["eval.mbpp.execute=true", "eval.mbpp.samples=2", "eval.limit=2", "name=evaluation", "gamma=2"]
    # It chooses a place for its compiled programs, and which are kept, where nobody else has.
    chosen = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    own = {name: value for name, value in os.environ.items() if name not in chosen}
    first = subprocess.run(call, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    directory = tmp_path / "runs/evaluation"
    results = json.loads((directory / "results.json").read_text())
    rows = results["downstream"]
    assert {(row["task"], row["name"]) for row in rows} == {
        (task, model)
        for task in tasks.split(",")
        for model in (
            "gecko", "gecko_ce", "tandem_ce", "gecko_distil", "tandem_distil", "otter", "bison", "tandem_distil_speed"
        )
    }  # fmt: skip
    assert all(row["n"] >= 1 and row["limit"] == 2 and row["low"] <= row["score"] <= row["high"] for row in rows)
    scores = {(row["task"], row["metric"], row["name"]): row["score"] for row in rows}
    speed = {row["task"]: row for row in rows if row["name"] == "tandem_distil_speed"}
    for (task, metric, name), score in scores.items():
        if name == "bison" and task != "mbpp_v1":  # several programs are drawn
            assert scores[task, metric, "tandem_distil_speed"] == score
    assert speed["natural_questions_v1"]["identical_to_primary"] == 1.0
    assert "identical_to_primary" not in speed["boolq_v1"]
    assert "signature" in speed["wmt22_de_en_v1"]
    assert "chrf by sacrebleu: nrefs:1|case:mixed" in first.stdout
    assert "isolation" in speed["mbpp_v1"]
    programs = list((tmp_path / "runs/store").glob("programs-*/*-cache"))
    assert len(programs) > 100, "those that compile in less than a second too"
    assert "Downstream tasks (paper table 3)" in first.stdout
    assert "How good are its answers?" in (directory / "report.html").read_text()

    again = subprocess.run(call, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "running" not in again.stderr
    assert json.loads((directory / "results.json").read_text())["downstream"] == rows

    # The same models in another store: every number comes again to its last digit.
    made = shutil.ignore_patterns("examples-*", "downstream-*")
    shutil.copytree(tmp_path / "runs/store", tmp_path / "other/runs/store", ignore=made)
    other = subprocess.run(call, cwd=tmp_path / "other", env=own, capture_output=True, text=True)
    assert "running  boolq_v1 bison" in other.stderr
    assert json.loads((tmp_path / "other/runs/evaluation/results.json").read_text())["downstream"] == rows
