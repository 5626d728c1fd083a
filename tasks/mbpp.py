"""MBPP (Austin et al. 2021): programs from a description and three tests. Running them is `tasks.sandbox`'s business.

The test questions are tasks 11 to 510; the exemplars are tasks 2, 3 and 4 in this order, as its authors use them.
"""

from __future__ import annotations

from tasks.example import Kind
from tasks.fields import text, texts
from tasks.files import json_lines
from tasks.metrics.programs import pass_at
from tasks.task import Dataset, File, Question, Row, Task

SUITE = "mbpp"
STOP = "[DONE]"
EXEMPLARS = ("2", "3", "4")
URL = "https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl"


def _question(row: Row) -> Question:
    tests = [_unix(test) for test in texts(row, "test_list", least=1)]
    asked = (
        f"You are an expert Python programmer, and here is your task: {text(row, 'text')} Your code should pass these "
        "tests:\n\n" + "\n".join(tests) + "\n[BEGIN]\n"
    )
    references = {"tests": tests, "setup": _unix(text(row, "test_setup_code")), "task_id": row["task_id"]}
    return Question(str(row["task_id"]), asked, f"{_unix(text(row, 'code'))}\n{STOP}", references)


def _unix(code: str) -> str:
    return code.replace("\r\n", "\n")


def _keep(part: str, row: Row) -> bool:
    return 11 <= row["task_id"] <= 510 if part == "eval" else str(row["task_id"]) in EXEMPLARS


_FILE = File("mbpp/mbpp.jsonl", json_lines, url=URL)

TASKS = (
    Task(
        name="mbpp_v1",
        suite=SUITE,
        split="test",
        dataset=Dataset(files={"eval": (_FILE,), "exemplars": (_FILE,)}, keep=_keep),
        question=_question,
        metrics=(pass_at(1), pass_at(10), pass_at(100)),
        primary="pass@1",
        kind=Kind.generate,
        stop=(STOP,),
        max_new_tokens=512,
        exemplar_ids=EXEMPLARS,
    ),
)
