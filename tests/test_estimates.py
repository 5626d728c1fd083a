"""What a dry run says that measuring takes: by the primary's size, by what is decoded, and by the platform."""

from __future__ import annotations

from launch.compose import compose
from launch.experiment import build
from launch.graph import topological
from launch.graphs import targets_of
from tasks import invented


def seconds(*words: str) -> dict[str, float]:
    steps = topological(build(compose(["drafter=tandem", "eval=stopping", *words])))
    return {step.name: step.estimate_s for step in steps if step.estimate_s is not None}


def test_what_decodes_takes_longer_with_a_larger_primary():
    small, large = (seconds(f"scale={scale}") for scale in ("tiny", "laptop"))
    for step in ("speed", "stopping", "tune_tandem_distil", "router_tandem_distil"):
        assert small[step] < large[step], step
    assert 30 < large["router_tandem_distil"] < 120, "it takes about a minute"


def test_what_decodes_takes_as_long_as_its_tokens(tmp_path):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("A prompt.\n", encoding="utf-8")
    once = seconds()["speed"]
    programs = 2 * once - seconds("eval.repeats=4")["speed"]
    assert 0 < programs < once, "what is compiled is compiled once"
    for word in ("eval.prompts=48", f"data.prompts=[{files[0]},{files[1]}]", "decode.max_new_tokens=256"):
        assert abs(seconds(word)["speed"] - (2 * once - programs)) < 1e-6, word


def test_an_evaluation_takes_as_long_as_its_answers(tmp_path):
    invented.write(tmp_path)
    words = ("job=evaluate", "eval.measures=[]", f"tasks.data_dir={tmp_path}", "eval.limit=20", "scale=laptop")

    def of(task: str, *more: str) -> float:
        steps = topological(targets_of(compose([*words, f"eval.tasks=[{task}]", *more])))
        return next(step.estimate_s or 0.0 for step in steps if step.name == f"{task} bison")

    answered, longer, chosen = of("squad_v2_v1"), of("wmt22_de_en_v1"), of("boolq_v1")  # 64 and 256 tokens, none
    assert 0 < chosen < answered < longer
    assert abs(longer - chosen - 4 * (answered - chosen)) < 1e-6
    tpu = ("platform=v5e_1", "scale=pod")
    assert of("wmt22_de_en_v1", *tpu) < of("wmt22_de_en_v1", "scale=pod") / 10


def test_an_accelerators_figures_are_the_platforms():
    cpu, tpu = (seconds("scale=pod", f"platform={platform}") for platform in ("local", "v5e_1"))
    assert all(tpu[step] < cpu[step] / 10 for step in ("router_tandem_distil", "tandem_distil"))
