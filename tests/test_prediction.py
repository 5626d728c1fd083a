"""What a drafter will bring, as predicted from held-out text: α is one minus what agreement measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drafter_heads import SIZES
from flax import nnx
from pairs import PRIMARY

from tandem.measure.agreement import Reader, means_by_position, measure
from tandem.measure.prediction import predicted_acceptance
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.tandem import Tandem

pytestmark = pytest.mark.usefixtures("quick_compilation")

SECONDARY = replace(PRIMARY, num_layers=2)
GAMMA = 3


@pytest.fixture(scope="module")
def primary():
    return Bound(*nnx.split(Decoder(PRIMARY, rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, PRIMARY.vocab_size, (4, 22)).astype(np.int32)


def tandem():
    return Bound(*nnx.split(Tandem(PRIMARY, SECONDARY, [0, 1], rngs=nnx.Rngs(1))))


def decoder():
    return Bound(*nnx.split(Decoder(SECONDARY, rngs=nnx.Rngs(1))))


@pytest.mark.parametrize("make", [tandem, decoder])
def test_it_is_what_agreement_measures(make, primary, windows):
    model = make()
    (measured,) = measure(primary, [Reader(model, GAMMA)], windows)
    expected = [1 - row["total_variation"] for row in means_by_position(measured, GAMMA)]
    np.testing.assert_allclose(predicted_acceptance(primary, model, windows, GAMMA), expected, rtol=1e-5)


def test_a_token_that_is_not_drafted_is_never_accepted(primary, windows):
    model, kept = tandem(), np.arange(0, PRIMARY.vocab_size, 2)
    logits = np.asarray(nnx.merge(*primary)(windows[:, :-1]))
    states = nnx.merge(*primary).states(windows[:, :-1], PRIMARY.num_layers)
    own = np.asarray(nnx.merge(*model)(windows[:, :-1], states, np.arange(21)[None] // GAMMA))
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    q = np.zeros_like(p)
    q[..., kept] = np.exp(own[..., kept] - np.logaddexp.reduce(own[..., kept], axis=-1, keepdims=True))
    overlap = np.minimum(p, q).sum(-1)
    expected = [overlap[:, GAMMA + place :: GAMMA].mean() for place in range(GAMMA)]
    np.testing.assert_allclose(predicted_acceptance(primary, model, windows, GAMMA, kept), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", SIZES)
def test_a_head_has_as_many_as_its_depth(kind, primary, windows):
    head = Bound(*nnx.split(HeadModule(SIZES[kind], PRIMARY, rngs=nnx.Rngs(2))))
    accepted = predicted_acceptance(primary, head, windows, 1)
    assert len(accepted) == SIZES[kind].depth
    assert all(0 < share < 1 for share in accepted)
