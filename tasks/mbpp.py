"""MBPP (Austin et al. 2021): programs from a description and three tests. Running them is `tasks.sandbox`'s business.

The test questions are tasks 11 to 510; the exemplars are tasks 2, 3 and 4 in this order, as its authors use them. Of
the sanitized questions, which its authors have verified, 257 are among these: a task of its own, with other scores.
"""

from __future__ import annotations

from collections.abc import Callable

from tasks.example import Kind
from tasks.fields import text, texts
from tasks.files import json_lines, json_objects
from tasks.metrics.programs import pass_at
from tasks.task import Dataset, File, Question, Row, Task

SUITE = "mbpp"
STOP = "[DONE]"
EXEMPLARS = ("2", "3", "4")
URL = "https://raw.githubusercontent.com/google-research/google-research/master/mbpp"


def _question(row: Row) -> Question:
    return _asked(row, text(row, "text"), text(row, "test_setup_code"))


def _sanitized(row: Row) -> Question:
    return _asked(row, text(row, "prompt"), "\n".join(texts(row, "test_imports")))


def _asked(row: Row, description: str, setup: str) -> Question:
    tests = [_unix(test) for test in texts(row, "test_list", least=1)]
    asked = (
        f"You are an expert Python programmer, and here is your task: {description} Your code should pass these "
        "tests:\n\n" + "\n".join(tests) + "\n[BEGIN]\n"
    )
    references = {"tests": tests, "setup": _unix(setup), "task_id": row["task_id"]}
    return Question(str(row["task_id"]), asked, f"{_unix(text(row, 'code'))}\n{STOP}", references)


def _unix(code: str) -> str:
    return code.replace("\r\n", "\n")


def _keep(part: str, row: Row) -> bool:
    return 11 <= row["task_id"] <= 510 if part == "eval" else str(row["task_id"]) in EXEMPLARS


def _task(name: str, suite: str, file: File, question: Callable[[Row], Question]) -> Task:
    return Task(
        name=name,
        suite=suite,
        split="test",
        dataset=Dataset(files={"eval": (file,), "exemplars": (file,)}, keep=_keep),
        question=question,
        metrics=(pass_at(1), pass_at(10), pass_at(100)),
        primary="pass@1",
        kind=Kind.generate,
        stop=(STOP,),
        max_new_tokens=512,
        exemplar_ids=EXEMPLARS,
        programs=True,
    )


_FULL = File("mbpp/mbpp.jsonl", json_lines, url=f"{URL}/mbpp.jsonl")
_SANITIZED = File("mbpp/sanitized-mbpp.json", json_objects, url=f"{URL}/sanitized-mbpp.json")

TASKS = (
    _task("mbpp_v1", SUITE, _FULL, _question),
    _task("mbpp_sanitized_v1", "agreement", _SANITIZED, _sanitized),
)
