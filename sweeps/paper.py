"""The paper's own numbers, as data.

Source: "Tandem Transformers for Inference Efficient LLMs", arXiv 2402.08644 (v3), ICML 2024. Every number but those of
table 6 (LaMDA) was measured on PaLM 2 models (Gecko, Otter, Bison), every latency on TPUv5e; the stand-ins of this
project are other models on other hardware.

Rows use the field names and units of `results.json`: shares are fractions, cross entropies are nats, speedups are
ratios over Bison. `name` is our name for the model in that role, so that a row of ours finds its counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CITATION = "Tandem Transformers for Inference Efficient LLMs, arXiv 2402.08644, ICML 2024"
URL = "https://arxiv.org/abs/2402.08644"
CAVEAT = "paper: PaLM 2, TPUv5e – another model, other hardware"

_LABELS = {
    "gecko": "Gecko",
    "gecko_distil": "Gecko-Distil",
    "tandem_ce": "Tandem-CE",
    "tandem_distil": "Tandem-Distil",
    "tandem_adaptive": "Tandem-Distil, adaptive",
    "otter": "Otter",
    "bison": "Bison",
}


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper: its number, what it shows, and its rows."""

    number: int
    title: str
    rows: tuple[dict[str, Any], ...]

    def rows_of(self, name: str, **where: Any) -> list[dict[str, Any]]:
        """Rows whose model plays the role of our `name`, with the given fields."""
        return [r for r in self.rows if r["name"] == name and all(r.get(k) == v for k, v in where.items())]


def _row(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "label": _LABELS[name], **values}


def _speed(field: str, **columns: tuple[float, float]) -> tuple[dict[str, Any], ...]:
    """Tables 2 and 8: per column (dataset and samples) the speedups of Gecko-Distil and Tandem-Distil."""
    rows = []
    for key, pair in columns.items():
        dataset, samples = _DATASETS[key[:-1]], int(key[-1])
        for name, speedup in zip(("gecko_distil", "tandem_distil"), pair, strict=True):
            gamma = 5 if name == "gecko_distil" and samples == 4 else 7
            rows.append(_row(name, dataset=dataset, samples=samples, gamma=gamma, **{field: speedup}))
    return tuple(rows)


_DATASETS = {"reddit": "Reddit", "cnn": "CNN/DailyMail", "lm1b": "LM1B"}


def _adaptive(field: str, **speedups: tuple[float, float]) -> tuple[dict[str, Any], ...]:
    """Tables 4 and 9: per dataset the speedup over Bison and over Tandem + SPEED with a fixed block."""
    return tuple(
        _row(
            "tandem_adaptive",
            dataset=_DATASETS[key],
            samples=1,
            gamma_max=27 if key == "lm1b" else 17,
            over_fixed_block=over_fixed,
            **{field: over_bison},
        )
        for key, (over_bison, over_fixed) in speedups.items()
    )


_FIVE = ("gecko", "tandem_ce", "tandem_distil", "otter", "bison")


def _tasks(metrics: dict[str, str], **scores: tuple[float, float, float, float, float]) -> tuple[dict[str, Any], ...]:
    """Tables 3, 10 and 11: per task the percentages of the five models, as fractions."""
    return tuple(
        _row(name, task=task, metric=metrics.get(task, metrics[""]), score=round(value / 100, 4))
        for task, values in scores.items()
        for name, value in zip(_FIVE, values, strict=True)
    )


_T3_METRICS = {"": "mean", "mbpp": "not named", "wmt22": "not named", "tydiqa": "f1"}

TABLES: dict[int, PaperTable] = {
    t.number: t
    for t in (
        PaperTable(
            1,
            "Agreement on pretraining data, γ = 2; relative to Bison's predictions in the last two",
            (
                _row("gecko", accuracy=0.5506, cross_entropy=2.14, relative_accuracy=0.7464, total_variation=0.391),
                _row(
                    "gecko_distil", accuracy=0.565, cross_entropy=2.12, relative_accuracy=0.753, total_variation=0.318
                ),
                _row(
                    "tandem_ce",
                    gamma=2,
                    accuracy=0.5835,
                    cross_entropy=1.94,
                    relative_accuracy=0.80,
                    total_variation=0.178,
                ),
                _row(
                    "tandem_distil",
                    gamma=2,
                    accuracy=0.5861,
                    cross_entropy=1.99,
                    relative_accuracy=0.81,
                    total_variation=0.141,
                ),
            ),
        ),
        PaperTable(
            2,
            "SPEED, end to end: speedup over Bison",
            _speed(
                "speedup_end_to_end",
                reddit1=(2.169, 2.471),
                reddit4=(1.919, 2.234),
                cnn1=(2.219, 2.473),
                cnn4=(1.940, 2.190),
                lm1b1=(2.348, 2.610),
                lm1b4=(2.011, 2.359),
            ),
        ),
        PaperTable(
            3,
            "Standalone, 1-shot; the tandem at γ = 3 with the free token",
            _tasks(
                _T3_METRICS,
                gen_tasks=(28.8, 37.1, 44.0, 51.1, 57.5),
                mbpp=(4.8, 13.8, 21.2, 20.8, 30.4),
                wmt22=(35.1, 37.4, 44.1, 48.4, 50.5),
                tydiqa=(55.0, 65.7, 69.0, 69.7, 73.4),
                superglue=(62.8, 78.5, 78.8, 79.0, 81.5),
            )
            + tuple(
                _row(name, task="speedup", speedup=speedup, **({"gamma": 3} if name.startswith("tandem") else {}))
                for name, speedup in zip(_FIVE, (6.40, 2.75, 2.75, 2.36, 1.0), strict=True)
            ),
        ),
        PaperTable(
            4,
            "Adaptive block length, end to end: speedup",
            _adaptive("speedup_end_to_end", reddit=(2.582, 1.045), cnn=(2.599, 1.051), lm1b=(2.853, 1.093)),
        ),
        PaperTable(
            5,
            "Model runs per response, LM1B",
            (
                _row("tandem_distil", dataset="LM1B", samples=1, gamma=7, primary_runs=51.53, secondary_runs=360.73),
                _row(
                    "tandem_adaptive",
                    dataset="LM1B",
                    samples=1,
                    gamma_max=27,
                    primary_runs=54.67,
                    secondary_runs=271.63,
                ),
            ),
        ),
        PaperTable(
            6,
            "Deep Tandem, LaMDA-1B split 8 + 8, γ = 2",
            (
                {"name": "lamda_1b", "label": "LaMDA-1B", "accuracy": 0.451, "cross_entropy": 2.71, "speedup": 1.0},
                {
                    "name": "deep_tandem",
                    "label": "Deep Tandem",
                    "gamma": 2,
                    "accuracy": 0.433,
                    "cross_entropy": 2.85,
                    "speedup": 1.25,
                },
            ),
        ),
        PaperTable(
            8,
            "SPEED, decoding only: speedup over Bison",
            _speed(
                "speedup_decode",
                reddit1=(2.356, 2.737),
                reddit4=(2.042, 2.425),
                cnn1=(2.418, 2.740),
                cnn4=(2.066, 2.369),
                lm1b1=(2.460, 2.756),
                lm1b4=(2.080, 2.466),
            ),
        ),
        PaperTable(
            9,
            "Adaptive block length, decoding only: speedup",
            _adaptive("speedup_decode", reddit=(2.885, 1.054), cnn=(2.908, 1.061), lm1b=(3.040, 1.103)),
        ),
        PaperTable(
            10,
            "Gen-tasks, 1-shot",
            _tasks(
                {"": "exact match", "lambada": "accuracy"},
                lambada=(45.5, 59.2, 68.3, 78.9, 82.9),
                natural_questions=(7.7, 9.9, 14.4, 19.9, 28.1),
                squad_v2=(45.3, 67.8, 70.2, 70.3, 75.4),
                trivia_qa=(36.8, 36.9, 51.2, 68.9, 77.3),
                web_questions=(9.0, 12.0, 16.0, 17.6, 23.8),
            ),
        ),
        PaperTable(
            11,
            "SuperGLUE, 1-shot",
            _tasks(
                {"": "accuracy", "multirc": "f1"},
                boolq=(65.4, 87.8, 87.6, 85.5, 88.8),
                cb=(39.3, 82.1, 83.9, 71.4, 87.5),
                copa=(80.0, 78.0, 82.0, 88.0, 88.0),
                rte=(55.2, 80.1, 78.3, 84.1, 77.6),
                record=(85.5, 87.8, 87.2, 91.2, 92.2),
                wic=(47.5, 50.0, 50.6, 49.7, 50.9),
                wsc=(75.8, 81.1, 80.4, 86.3, 86.3),
                multirc=(53.9, 80.8, 80.1, 76.1, 80.5),
            ),
        ),
    )
}
