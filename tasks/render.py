"""docs/tasks.md: `uv run python -m tasks.render > docs/tasks.md`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.fewshot import build
from tasks.invented import write
from tasks.registry import SUITES, TASKS
from tasks.sources import Settings
from tasks.task import Task

HEAD = """\
# The evaluation tasks

This file is written by `uv run python -m tasks.render > docs/tasks.md`; a test holds it to what the code does.

`uv run launch/run.py job=evaluate eval=superglue` (or `tydiqa`, `gen_tasks`, `mbpp`, `wmt22`, `all`) evaluates the
models of a run; `eval=list` lists the tasks with their sizes. `eval.tasks=[boolq_v1,wmt22]` takes single tasks and
suites. A task's name ends in the version of its prompt. Every task is also a SeqIO task of that name, and every suite a
mixture: `import tasks` registers them where SeqIO has been imported before, `tasks.register()` anywhere.

## Data

`tasks.data_dir=…` names one directory (otherwise `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`). A dataset that
TensorFlow Datasets has prepared there is read first, in its own layout (`super_glue/boolq/1.0.2/`). Otherwise the
datasets' own files are, at the paths below; of several the first that is there. What is missing is downloaded into the
same directory with `tasks.download=true`, and never without it; the message that says what is missing has a command
for each. Nothing of a dataset is part of this repository.

A changed file is evaluated again, the reference of a translation and a shard of a prepared dataset too. A row that is
not what its format says (an answer that is a text where a list is expected, null, half of a surrogate pair) is refused
with file and line. Byte order marks are dropped. SQuAD's and TyDiQA's files may hold rows as `datasets` writes them
(`answers` with a list `text`), in a list or a line each; MBPP's sanitized questions too.

| task | dataset | questions | exemplars |
|---|---|---|---|
"""

PROMPTS = """
Exemplars are drawn from the training split, for each question anew, by `seed`, the task's name and the question's
id: `eval.shots` says how many (default 1, from 0). An exemplar never has the passage (or the text) of the question.
Where no training file is there, and for WMT22, which has none, they are other evaluated questions. Those of MBPP are
always its tasks 2, 3 and 4, in this order. FewGLUE's exemplars for WSC all say yes.

A prompt that is too long for a model loses exemplars first, and only then the front of the question.

## Scores

| task | metrics (first: the paper's tables) | how |
|---|---|---|
"""

NOTES = """
- Percentages, except perplexity, each with its number of examples and a 95 % bootstrap interval: 1000 resamples of the
  examples by seed; of whole questions where a question has several examples (MultiRC, ReCoRD's passages).
- A ranked option's score is the sum of its tokens' log-likelihoods, for every task here.
- `eval.limit` keeps the first examples of a task, and the rest of a question that it would cut.
- `f1_a` is F1 of the answers judged correct over all answers, `em` of MultiRC the share of questions with every answer
  right.
- `em` and `f1` normalise text as the dataset's own script does: SQuAD's for SQuAD 2.0, Natural Questions and
  WebQuestions, TriviaQA's for TriviaQA, MLQA's by language for TyDiQA. TyDiQA's publishers use SQuAD's script, which
  removes English articles in every language: `f1_squad`, `em_squad`.
- SQuAD 2.0: an empty answer or `unanswerable` says that there is none.
- LAMBADA: right if greedy decoding writes the last word, without white space behind it; perplexity is per word. One
  that no float holds is null with a note, and the task's other metrics stand.
- `webquestions_greedy_v1`: right if greedy decoding writes one of the accepted answers, be it the beginning of another.
- MBPP: 500 test questions; pass@k is the unbiased estimate from n ≥ k samples. `mbpp_sanitized_v1` asks the 257 of
  them that its authors verified, with their corrected texts and tests: other scores, and so a task of its own.
- WMT22: sacrebleu's BLEU (13a; zh and ja-mecab for these languages) and chrF against its default reference, with
  signatures.

## Where these differ from lm-evaluation-harness 0.4.13

Prompts and options are the same, character by character, for BoolQ, CB, COPA, MultiRC, RTE, WiC, WSC, LAMBADA, SQuAD
2.0, Natural Questions, TriviaQA, WebQuestions and TyDiQA without exemplars, oddities included: COPA's two spaces before
an option, TriviaQA's second question mark. The differences:

- MultiRC: that harness takes the label "false" for the option that says yes; here yes is right where the label is true.
- Natural Questions and TriviaQA: it stops at commas and full stops, so that "St. Louis" cannot be right. Here answers
  end with the line; `lm_eval_em` is its metric on the cut answer.
- WebQuestions: it asks whether greedy decoding would begin with an accepted answer. `webquestions_greedy_v1` does so;
  `webquestions_v1` generates and compares, as the paper's table says EM.
- SQuAD 2.0: it compares the word "unanswerable" itself, so a question without an answer is right only where the model
  writes nothing.
- Exemplars: it writes two spaces before the answers of LAMBADA and SQuAD 2.0; here there is one.

## Examples

Made up, one for each task; nothing below is from a dataset. `▸` marks where the model's answer begins: what follows is
the right one.
"""


def render() -> str:
    """The whole file."""
    tasks = [task for suite in (*SUITES, "agreement") for task in TASKS.values() if task.suite == suite]
    parts = [HEAD]
    parts += [
        f"| `{task.name}` | {_dataset(task)} | {_files(task, 'eval')} | {_files(task, 'exemplars')} |\n"
        for task in tasks
    ]
    parts.append(PROMPTS)
    parts += [
        f"| `{task.name}` | {', '.join(metric.name for metric in task.metrics)} | {_how(task)} |\n" for task in tasks
    ]
    parts.append(NOTES)
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
        parts += [_example(task, Settings(directory, shots=1, seed=0, limit=1)) for task in tasks]
    return "".join(parts)


def _dataset(task: Task) -> str:
    return f"`{task.dataset.tfds}`" if task.dataset.tfds else "not in TFDS"


def _files(task: Task, part: str) -> str:
    return ", ".join(f"`{file.path}`" for file in task.dataset.files.get(part, ())) or "the questions"


def _how(task: Task) -> str:
    words = {"rank": "ranks options", "likelihood": "scores the text"}
    stop = ", ".join(f"`{stop!r}`" for stop in task.stop)
    return words.get(task.kind) or f"generates up to {stop} or {task.max_new_tokens} tokens"


def _example(task: Task, settings: Settings) -> str:
    example, question = next(build(task, settings))
    lines = [f"{example.prompt}▸{question.answer}"]
    if len(example.options) > 1:
        lines += ["", "options:", *(repr(option) for option in example.options)]
    body = "\n".join(lines)
    return f"\n### {task.name}\n\n```text\n{body}\n```\n"


if __name__ == "__main__":
    print(render(), end="")
