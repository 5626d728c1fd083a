"""The table of models on their own (paper, table 3, last row), as rows: what they write is theirs, and verified by
nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tandem.measure.speed import (
    BASELINE,
    BASELINE_WIDTHS,
    Candidate,
    Primary,
    autoregressive,
    fastest,
    repetition_rate,
)
from tandem.measure.timing import Method, Outcome, compare, speedup


def standalone_rows(
    primaries: Mapping[str, Primary],
    tandems: Mapping[str, Candidate],
    decoders: Mapping[str, Primary],
    gammas: Sequence[int],
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The speed of `tandems` at each block length γ with the free token of their primary, and of plain `decoders`,
    which are held against the first of `primaries`; under them the primary itself, for each of `primaries`.

    `agreement_with_primary` is the share of tokens that equal the row's primary's own response at the same place,
    `common_prefix` the mean number of tokens before the first difference.
    """
    baselines = {
        name: {f"{name}: {key}": method for key, method in autoregressive(primary, BASELINE_WIDTHS).items()}
        for name, primary in primaries.items()
    }
    methods = {key: method for own in baselines.values() for key, method in own.items()}
    for name, one in tandems.items():
        for gamma in gammas:
            method = Method.of(primaries[one.primary], one.drafter, gamma, verify=False)
            methods[f"{name}, γ = {gamma}"] = method
    methods |= {name: Method.of(decoder) for name, decoder in decoders.items()}
    outcomes = compare(methods, prompts, max_new_tokens, repeats, progress)

    rows = []
    for number, (primary, own) in enumerate(baselines.items()):
        baseline = fastest(own, outcomes)
        drafting = [(name, gamma) for name, one in tandems.items() if one.primary == primary for gamma in gammas]
        for name, gamma in drafting:
            outcome = outcomes[f"{name}, γ = {gamma}"]
            about = {"name": name, "primary": primary, "gamma": gamma}
            about["tokens_per_primary_run"] = outcome.tokens_per_primary_run
            rows.append({**about, **_measures(outcome, baseline, len(prompts))})
        alone = {} if number else {name: outcomes[name] for name in decoders}
        for name, outcome in {**alone, BASELINE: baseline}.items():
            rows.append({"name": name, "primary": primary, **_measures(outcome, baseline, len(prompts))})
    return rows


def _measures(outcome: Outcome, baseline: Outcome, prompts: int) -> dict[str, Any]:
    equal = outcome.responses == baseline.responses
    return {
        "prompts": prompts,
        "speedup_decode": speedup(baseline, outcome),
        "speedup_end_to_end": speedup(baseline, outcome, end_to_end=True),
        "tokens_per_second_decode": outcome.responses.size / float(np.median(outcome.decode_seconds)),
        "agreement_with_primary": float(equal.mean()),
        "common_prefix": float(np.cumprod(equal, axis=1).sum(axis=1).mean()),
        "repetition_rate": repetition_rate(outcome.responses),
    }
