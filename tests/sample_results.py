"""Results files like the ones that runs leave, for tests of what is made of them."""

from __future__ import annotations

import math
from typing import Any


def _sizes(name: str, role: str, layers: int, width: int, parameters: int) -> dict[str, Any]:
    return {
        "name": name, "role": role, "stand_in": True, "num_layers": layers, "d_model": width, "num_heads": 8,
        "num_kv_heads": 8, "d_ff": 4 * width, "vocab_size": 4096, "parameters": parameters,
    }  # fmt: skip


def _agreement(
    name: str, accuracy: float, ce: float, relative: float, tv: float, gamma: int | None = None
) -> dict[str, Any]:
    row = {
        "name": name, "accuracy": accuracy, "cross_entropy": ce, "relative_accuracy": relative, "total_variation": tv,
        "parameters": 2_960_000,
    }  # fmt: skip
    return row if gamma is None else row | {"gamma": gamma}


def below(values: tuple[float, ...], control: str, theirs: float, fresh: float) -> dict[str, Any]:
    """What a tandem's row says of the best control; its cross entropy is gecko_ce's."""
    return {
        "total_variation_control": control, "total_variation_below_control": theirs - values[3],
        "edge_left": (theirs - values[3]) / (theirs - fresh),
        "cross_entropy_control": "gecko_ce", "cross_entropy_below_control": 2.22 - values[1],
    }  # fmt: skip


def _speed(name: str, tokens: float, decode: float, end: float, predicted: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "gamma": 5, "tokens_per_primary_run": tokens, "acceptance_rate": (tokens - 1) / 5,
        "primary_runs": 128 / tokens, "secondary_runs": 640 / tokens, "cost_ratio": 0.079, "verify_cost": 1.13,
        "speedup_decode": decode, "speedup_end_to_end": end, "speedup_predicted": predicted,
        "identical_to_primary": 1.0, "identical_to_width1": 0.96875, "tokens_per_second_decode": 46.3 * decode,
        "prompts": 32, **more,
    }  # fmt: skip


def sample_results() -> dict[str, Any]:
    tandem_ce = {
        1: (0.583, 2.06, 0.741, 0.221),
        2: (0.579, 2.08, 0.735, 0.228),
        4: (0.572, 2.11, 0.725, 0.240),
        8: (0.565, 2.14, 0.715, 0.252),
    }
    tandem_distil = {g: (a, c + 0.02, r + 0.014, t - 0.038) for g, (a, c, r, t) in tandem_ce.items()}
    by_position = [
        {
            "name": name,
            "gamma": g,
            "position": p,
            "total_variation": start + 0.05 * math.log2(1 + p),
            "accuracy": 0.58 - 0.01 * p,
            "control": "gecko",
            "total_variation_fresh": start,
            "total_variation_control": start + 0.2,
            "edge_left": 1 - 0.25 * math.log2(1 + p),
        }
        for name, start in (("tandem_ce", 0.19), ("tandem_distil", 0.15))
        for g in (1, 2, 4, 8)
        for p in range(g)
    ]
    return {
        "provenance": {
            "commit": "3f1c9b27d4", "dirty": True, "config_hash": "9a8b7c6d", "seconds": 431.7,
            "date": "2026-11-22T12:00:00+00:00",
            "command": "launch/run.py model=tandem_bison_gecko train=distil",
            "steps": {"tandem_ce": "6d5e4f", "tandem_distil": "0a1b2c"},
            "packages": {"jax": "0.10.2", "flax": "0.12.8"},
            "hardware": {"cpu": "a CPU", "cores": 2, "devices": ["cpu"], "memory_gb": 8, "os": "Linux"},
        },
        "models": [
            _sizes("bison", "primary", 8, 512, 29_800_000),
            _sizes("otter", "middle", 6, 320, 9_700_000),
            _sizes("gecko", "secondary", 4, 192, 2_960_000),
        ],
        "agreement": [
            _agreement("gecko", 0.541, 2.33, 0.662, 0.301),
            _agreement("gecko_ce", 0.552, 2.22, 0.683, 0.277),
            _agreement("gecko_distil", 0.550, 2.24, 0.693, 0.262),
            *(_agreement("tandem_ce", *values, gamma=g) | below(values, "gecko_ce", 0.277, 0.221)
              for g, values in tandem_ce.items()),
            *(_agreement("tandem_distil", *values, gamma=g) | below(values, "gecko_distil", 0.262, 0.183)
              for g, values in tandem_distil.items()),
            _agreement("otter", 0.592, 2.01, 0.755, 0.204),
            _agreement("bison", 0.641, 1.75, 1.0, 0.0),
        ],
        "agreement_by_position": by_position,
        "speed": [
            {"name": "autoregressive", "tokens_per_primary_run": 1.0, "primary_runs": 128, "speedup_decode": 1.0,
             "speedup_end_to_end": 1.0, "identical_to_primary": 1.0, "tokens_per_second_decode": 46.3, "prompts": 32},
            _speed("gecko", 3.2, 1.6, 1.53, 1.73, acceptance_by_position=[0.7, 0.66, 0.65, 0.64, 0.62],
                   accepted_lengths=[410, 290, 200, 130, 95, 200]),
            _speed("gecko_distil", 3.11, 1.62, 1.55, 1.74, acceptance_by_position=[0.68, 0.66, 0.65, 0.64, None],
                   accepted_lengths=[420, 290, 200, 130, 95, 190]),
            _speed("tandem_distil", 3.48, 1.81, 1.72, 1.95, acceptance_by_position=[0.76, 0.72, 0.69, 0.67, 0.65],
                   accepted_lengths=[310, 250, 200, 150, 110, 280],
                   tokens_control="gecko", speedup_control="gecko_distil",
                   tokens_over_control=3.48 / 3.2, speedup_over_control=1.81 / 1.62),
        ],
        "standalone": [
            {"name": "tandem_distil", "gamma": 3, "speedup_decode": 2.91, "speedup_end_to_end": 2.6,
             "agreement_with_primary": 0.412, "tokens_per_second_decode": 134.7},
        ],
        "training": {},
    }  # fmt: skip


def sample_metrics() -> list[dict[str, Any]]:
    steps = ("bison", "gecko", "gecko_ce", "tandem_ce", "gecko_distil", "tandem_distil")
    return [
        {
            "time": 0.0,
            "step_name": name,
            "step": step,
            "cross_entropy": 1.9 + 0.1 * i + 1.5 / (1 + step / 60) + 0.05 * math.sin(step),
        }
        for i, name in enumerate(steps)
        for step in range(0, 600, 4)
    ]


def stopped(stop: str, gamma: int, threshold: float | None, over: float, name: str = "tandem_distil") -> dict[str, Any]:
    return {
        "name": name, "stop": stop, "gamma": gamma, "threshold": threshold, "tokens_per_primary_run": 2.41,
        "drafts_per_primary_run": 3.25, "cost_ratio": 0.0512,
        "speedup_decode": 1.5 * over, "over_fixed_decode": over, "over_fixed": 1.02, "over_fixed_flat": 1.07,
        "identical_to_primary": 1.0,
    }  # fmt: skip


def adaptive_results() -> dict[str, Any]:
    head = {"name": "tandem_distil", "positions": 4992, "mean": 0.58, "calibration_error": 0.041, "auc": 0.77}
    return sample_results() | {
        "stopping": [
            stopped("fixed", 4, None, 1.0, "gecko_distil"), stopped("router", 8, 0.3, 1.01, "gecko_distil"),
            stopped("fixed", 4, None, 1.0), stopped("router", 8, 0.3, 0.98), stopped("router", 8, 0.8, 0.9),
            stopped("survival", 7, 0.1234, 1.04), stopped("oracle", 8, None, 1.4),
        ],
        "router": [head | {"head": "this", "temperature": 1.25}, head | {"head": "survival"}],
        "speed_by_category": [
            {"name": name, "category": category, "prompts": 16, "tokens_per_primary_run": tokens,
             "speedup_decode": tokens / 2, "repetition_rate": 0.125}
            for category, tokens in (("writing", 2.25), ("code", 3.5)) for name in ("gecko_distil", "tandem_distil")
        ],
        "stopping_by_category": [
            {"category": category, **stopped("survival", 8, 0.1, over)}
            for category, over in (("lm1b", 1.03), ("reddit", 0.97))
        ],
    }  # fmt: skip


def joint_results() -> dict[str, Any]:
    """Two primaries: bison, and the one that was trained with the tandem."""
    results, joint = adaptive_results(), "bison_of_tandem_distil"
    for key in ("speed", "standalone", "speed_by_category", "stopping"):
        for row in results[key]:
            row["primary"] = joint if row["name"] == "tandem_distil" else "bison"
    results["speed"].insert(-1, {**results["speed"][0], "primary": joint})
    results["standalone"].append({"name": "gecko", "primary": "bison", "speedup_decode": 5.0})
    return results


def whole_results() -> dict[str, Any]:
    """Rows of every name that `results.json` can have."""
    times = {"compute_s": 1e-4, "memory_s": 2e-4, "network_s": 0.0, "roofline_s": 2e-4, "compiler_s": 3e-4}
    compiled = {
        "name": "verify", "what": "verification", "platform": "v5e_1", "compile_seconds": 1.0, "argument_bytes": 4096,
        "memory": {"arguments": 4096, "total": 8192}, "flops": 1e9, "bytes": 1e6, "loops": [{"trips": 4}],
        "collectives": {"all-reduce": {"count": 2, "payload": 512.0}}, **times,
    }  # fmt: skip
    too_large = {
        "name": "train", "what": "training", "platform": "v5e_1", "compile_seconds": 2.0, "argument_bytes": 2**36,
        "too_large": {"used": 2**36, "limit": 2**34},
    }  # fmt: skip
    predicted = {
        "by": "roofline", "gamma": 4, "primary_s": 1e-3, "secondary_s": 1e-4, "verify_s": 1.1e-3, "cost_ratio": 0.1,
        "verify_cost": 1.1, "block_cost": 1.5,
    }  # fmt: skip
    answered = {
        "suite": "superglue", "metric": "accuracy", "primary_metric": True, "score": 60.0, "low": 57.0, "high": 63.0,
        "n": 50, "shots": 1, "limit": None,
    }  # fmt: skip
    return adaptive_results() | {
        "compiled": [compiled, too_large],
        "compiled_speed": [predicted | {"acceptance": rate, "speedup_predicted": 1 + rate} for rate in (0.5, 0.8)],
        "downstream": [
            {"name": name, "task": task, **answered} for name in ("gecko", "bison") for task in ("boolq_v1", "rte_v1")
        ],
        "downstream_left_out": [{"task": "record_v1", "suite": "superglue", "reason": "its questions are not there"}],
        "downstream_tables": [
            {"table": "downstream", "task": "superglue", "source": "measured", "metric": None, "n": 100, "bison": 60.0}
        ],
    }
