"""The output's law is the primary's: by enumeration to 1e-12, by a G-test with real draws, and planted faults show."""

from __future__ import annotations

import jax
import pytest
from enumeration import (
    PRIMARY,
    SECONDARY,
    Scripted,
    distance,
    output_law,
    primary_law,
    random_decoder,
    random_tandem,
)

from tandem.config import Verification
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine
from tandem.decoding.law import Law
from tandem.decoding.stopping import Confidence

PROMPT = [0, 2, 1]
EXACT = 1e-12
WRONG = 1e-4  # what a planted fault changes at the least
SAMPLING = Law(temperature=1.0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def pair(kind: str, **options):
    """An engine that draws by script, and the weights of both models."""
    graph, weights = random_decoder(PRIMARY, 0)
    if kind == "none":
        return Engine(graph, chance=Scripted(), **options), weights, None
    if kind == "tandem":
        model, drafter_weights = random_tandem(1)
        drafter = TandemDrafter(model)
    else:
        model, drafter_weights = random_decoder(SECONDARY, 1)
        drafter = Independent(model)
    return Engine(graph, drafter, chance=Scripted(), **{"gamma": 2, **options}), weights, drafter_weights


def wrong_by(engine: Engine, weights, drafter_weights, new: int = 3) -> float:
    law = output_law(engine, weights, drafter_weights, PROMPT, new)
    assert sum(law.values()) == pytest.approx(1, abs=EXACT)
    return distance(law, primary_law(engine.primary, weights, engine.law, PROMPT, new, engine.stop_tokens))


CASES = {
    "autoregressive": ("none", {}),
    "independent": ("independent", {}),
    "tandem": ("tandem", {}),
    "tandem, block verification": ("tandem", {"verification": Verification.block}),
    "independent, block verification": ("independent", {"verification": Verification.block}),
    "one draft": ("tandem", {"gamma": 1}),
    "padded width": ("tandem", {"width": 5}),
    "adaptive": ("tandem", {"rule": Confidence(0.6)}),
    "adaptive, independent": ("independent", {"rule": Confidence(0.6)}),
    "adaptive, block verification": ("tandem", {"rule": Confidence(0.6), "verification": Verification.block}),
    "stop token": ("tandem", {"stop_tokens": (2,)}),
    "stop token, adaptive, block verification": (
        "independent",
        {"stop_tokens": (1,), "rule": Confidence(0.6), "verification": Verification.block},
    ),
    "temperature and top-k": ("tandem", {"law": Law(temperature=1.5, top_k=2)}),
    "top-p": ("independent", {"law": Law(temperature=0.8, top_p=0.9)}),
    "top-p, block verification": (
        "tandem",
        {"law": Law(temperature=1.2, top_p=0.8), "verification": Verification.block},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_law_of_the_output_is_the_primarys(case):
    kind, options = CASES[case]
    assert wrong_by(*pair(kind, **{"law": SAMPLING, **options})) < EXACT
