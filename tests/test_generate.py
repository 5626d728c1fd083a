"""Responses in ragged batches against one prompt at a time."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from pairs import PRIMARY, decoder, tandem

from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights
from tandem.decoding.generate import generate
from tandem.decoding.sampling import SamplingConfig
from tandem.model.bound import Bound

# Small models, but many programs to compile.
pytestmark = pytest.mark.slow

GRAPH, WEIGHTS = decoder(PRIMARY, 0)
PAIR = tandem(1)
NEW = 70  # more than two segments


def prompts(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 37, 2 + 9 * index).astype(np.int32) for index in range(count)]


def bound(drafter=None, drafter_weights=None, **options) -> Bound[Engine]:
    return Bound(Engine(GRAPH, drafter, **options), EngineWeights(WEIGHTS, drafter_weights))


def alone(engine: Bound[Engine], prompt: np.ndarray) -> list[int]:
    """One decoding of all NEW tokens in one go."""
    definition, weights = engine
    count, row = jnp.array([len(prompt)]), np.pad(prompt, (0, 32 - len(prompt)))
    state = definition.prefill(weights, jnp.asarray(row[None]), count, max_new_tokens=NEW)
    state = definition.decode(weights, state, count - 1 + NEW)
    return np.asarray(state.tokens)[0, len(prompt) : len(prompt) + NEW].tolist()


@pytest.mark.parametrize("verify", [True, False], ids=["speed", "standalone"])
def test_segments_and_batches_change_no_response(verify):
    engine = bound(TandemDrafter(PAIR.definition), PAIR.weights, gamma=3, verify=verify)
    found = generate(engine, prompts(), NEW, batch_size=2)
    assert [response.tolist() for (response,) in found] == [alone(engine, prompt) for prompt in prompts()]


def test_stopping_looks_at_what_is_written_and_stops_only_that_row():
    engine = bound(width=2)
    whole = [alone(engine, prompt) for prompt in prompts()]
    looked: list[list[int]] = []

    def stopped(response: np.ndarray) -> bool:
        looked.append(response.tolist())
        return response.tolist() == whole[1][: len(response)]

    found = generate(engine, prompts(), NEW, 3, stopped)
    assert found[1][0].tolist() == whole[1][:8]
    assert [found[0][0].tolist(), found[2][0].tolist()] == [whole[0], whole[2]]
    assert sum(response == whole[1][: len(response)] for response in looked) == 1


def test_a_response_ends_before_a_stop_token():
    whole = alone(bound(), prompts()[2])
    stop = whole[9]
    engine = bound(stop_tokens=(stop,))
    ((response,),) = generate(engine, prompts()[2:], NEW, 4)
    assert response.tolist() == whole[: whole.index(stop)]


def test_samples_depend_on_seed_and_prompt_and_not_on_the_batch():
    engine = bound(sampling=SamplingConfig(temperature=8.0))

    def run(batch_size: int, seed: int) -> list[list[list[int]]]:
        found = generate(engine, prompts(), 12, batch_size, samples=3, seed=seed)
        return [[response.tolist() for response in several] for several in found]

    first = run(3, seed=0)
    assert run(9, seed=0) == first
    assert run(3, seed=1) != first
    assert all(len({tuple(response) for response in several}) == 3 for several in first)
