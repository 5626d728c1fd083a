"""Many tokens, one process: nothing is compiled after the warm-up, memory stays, and responses are the reference's.

    TANDEM_TOKENS=100000 uv run pytest tests/test_long.py -m slow

decodes more of them than by default, of other prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import PRIMARY, decoder, tandem

from tandem.config import Verification
from tandem.decoding import inversion
from tandem.decoding.drafters import Drafter
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.drafters.prompt_lookup import PromptLookup
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights, greedy
from tandem.decoding.generate import generate
from tandem.decoding.sampling import GREEDY, SamplingConfig
from tandem.decoding.stopping import Confidence, StoppingRule
from tandem.decoding.stopping.router import Router, fold, new_router
from tandem.model.bound import Bound

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's memory is read from Linux's /proc"),
]

TOKENS = int(os.environ.get("TANDEM_TOKENS", "12000"))
SEED = int(os.environ.get("TANDEM_TOKENS_SEED", "0"))
CHECKED = 0.05  # of the responses
SETTLED = 3  # times each way, until the allocator has the room that batches of all sizes ask for
MORE_MB = 20.0  # than then
VOCABULARY, LONGEST, MOST_NEW = PRIMARY.vocab_size, 190, 60
STOP = 5
LENGTHS = (100, LONGEST)  # of prompts, one for each shape that there is: 128 and 256 tokens
COMPILATION = "/jax/core/compile/backend_compile_duration"  # also of a program that another process has compiled

GRAPH, WEIGHTS = decoder(PRIMARY, 0)


@dataclass
class Way:
    """One way of decoding; `batch_size` and `samples` as `generate` takes them."""

    name: str
    batch_size: int
    drafter: Bound[Drafter] | None = None
    gamma: int = 0
    rule: Bound[StoppingRule] | None = None
    samples: int = 1
    sampling: SamplingConfig = GREEDY
    verification: Verification = Verification.token
    stop_tokens: tuple[int, ...] = ()
    engine: Bound[Engine] = field(init=False)

    def __post_init__(self) -> None:
        drafter, rule = self.drafter, self.rule
        definition = Engine(
            GRAPH, drafter and drafter.definition, gamma=self.gamma, rule=rule and rule.definition,
            sampling=self.sampling, verification=self.verification, stop_tokens=self.stop_tokens,
        )  # fmt: skip
        self.engine = Bound(definition, EngineWeights(WEIGHTS, drafter and drafter.weights, rule and rule.weights))

    @property
    def rows(self) -> int:
        """Prompts of a batch."""
        return self.batch_size // self.samples


@pytest.fixture(scope="module")
def ways() -> list[Way]:
    """Greedy and drawn, with and without drafters, rules, samples and stop tokens."""
    graph, weights = tandem(1)
    small = Bound(TandemDrafter(graph), weights)
    # The primary with noise on its weights: some of its drafts are accepted.
    leaves, tree = jax.tree.flatten(WEIGHTS)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.1 * jnp.std(leaf) * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    blurred = jax.tree.unflatten(tree, [leaf + more for leaf, more in zip(leaves, noise, strict=True)])
    alike, lookup = Bound(Independent(GRAPH), blurred), Bound(PromptLookup(VOCABULARY), None)
    embedding = nnx.merge(GRAPH, blurred).embed(jnp.arange(VOCABULARY))
    router = Bound(Router(), fold(new_router(jax.random.key(3), embedding, threshold=0.5)))
    warm, cut = SamplingConfig(temperature=1.5), SamplingConfig(temperature=1.0, top_p=0.9)
    return [
        Way("autoregressive", 8),
        Way("autoregressive, drawn", 6, samples=3, sampling=warm),
        Way("tandem", 4, small, 3, stop_tokens=(STOP,)),
        Way("tandem, drawn", 6, small, 3, samples=2, sampling=cut, verification=Verification.block),
        Way("independent", 5, alike, 6, rule=router),
        Way("independent, drawn", 1, alike, 4, sampling=warm, rule=Bound(Confidence(0.3), None)),
        Way("prompt lookup", 8, lookup, 5),
    ]


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Programs that are compiled meanwhile, by their names."""
    found: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event == COMPILATION:
            found.append(str(about.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True)
class Said:
    """A response, and what it is of."""

    way: Way
    prompt: np.ndarray
    limit: int
    seed: int
    place: tuple[int, int]  # of the prompt in its call, and of the sample
    response: np.ndarray


def prompts(draw: np.random.Generator, lengths: np.ndarray) -> list[np.ndarray]:
    return [draw.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def say(way: Way, draw: np.random.Generator, lengths: np.ndarray, limit: int) -> list[Said]:
    asked, seed = prompts(draw, lengths), int(draw.integers(1 << 30))
    written = generate(way.engine, asked, limit, way.batch_size, samples=way.samples, seed=seed)
    return [
        Said(way, prompt, limit, seed, (number, sample), response)
        for number, (prompt, several) in enumerate(zip(asked, written, strict=True))
        for sample, response in enumerate(several)
    ]


@jax.jit
def reread(weights: Any, text: jax.Array, first: jax.Array) -> jax.Array:
    """The logits [N + 1, V] of a text [T] from place `first` on, read at once by the primary alone: no cache, no loop,
    no batch."""
    return jax.lax.dynamic_slice_in_dim(nnx.merge(GRAPH, weights)(text[None])[0], first, MOST_NEW + 1)


@partial(jax.jit, static_argnums=0)
def redrawn(sampling: SamplingConfig, logits: jax.Array, key: jax.Array, first: jax.Array) -> jax.Array:
    """The tokens [N + 1] that a block without drafts draws at each place from `first` on."""

    def bits(place: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, place), 1), (inversion.BITS,), jnp.uint32)

    return inversion.token(sampling.probabilities(logits), jax.vmap(bits)(first + jnp.arange(len(logits))))


def key_of(said: Said) -> jax.Array:
    number, sample = said.place
    return jax.random.split(jax.random.fold_in(jax.random.key(said.seed), number), said.way.samples)[sample]


def by_the_primary(said: Said) -> np.ndarray:
    """What autoregressive decoding has at each place of the response, given what is before, and one token more."""
    text = np.zeros(LONGEST + MOST_NEW + 1, np.int32)
    whole = np.concatenate([said.prompt, said.response])
    text[: len(whole)] = whole
    first = jnp.asarray(len(said.prompt) - 1)
    logits, sampling = reread(WEIGHTS, jnp.asarray(text), first), said.way.sampling
    found = np.asarray(greedy(logits) if sampling.greedy else redrawn(sampling, logits, key_of(said), first))
    return found[: len(said.response) + 1]


def alone(said: Said) -> np.ndarray:
    """The same response decoded in a batch of one, in one go."""
    definition, weights = said.way.engine
    given = np.zeros((1, LONGEST), np.int32)
    given[0, : len(said.prompt)] = said.prompt
    lengths = jnp.asarray([len(said.prompt)])
    state = definition.prefill(weights, given, lengths, key_of(said)[None], max_new_tokens=MOST_NEW)
    state = definition.decode(weights, state, lengths - 1 + said.limit)
    return np.asarray(state.tokens)[0, len(said.prompt) :][: said.limit]


def check(said: Said) -> None:
    response, about = said.response, (said.way.name, len(said.prompt), said.limit, said.seed, said.place)
    ended = len(response) < said.limit
    assert ended <= bool(said.way.stop_tokens), about
    if said.way.drafter is None or said.way.sampling.greedy:
        expected = by_the_primary(said)
        assert not ended or expected[-1] in said.way.stop_tokens, about
        expected = expected[:-1]
    else:
        expected = alone(said)
    np.testing.assert_array_equal(response, expected, err_msg=str(about))


def test_many_tokens_compile_nothing_keep_to_their_memory_and_are_the_references(ways):
    draw = np.random.default_rng(SEED)
    for way in ways:
        for length in LENGTHS:
            say(way, draw, np.full(way.rows, length), MOST_NEW)
    counts, chosen = dict.fromkeys([way.name for way in ways], 0), []

    def every_way() -> None:
        for way in ways:
            number = draw.integers(way.rows, 3 * way.rows + 1)
            lengths = draw.integers(2, LONGEST, number, endpoint=True)
            said = say(way, draw, lengths, int(draw.integers(1, MOST_NEW, endpoint=True)))
            first = said[:1] if counts[way.name] == 0 else []  # of each way one, and of all a share
            counts[way.name] += sum(len(one.response) for one in said)
            chosen.extend([*first, *(one for one in said[len(first) :] if draw.random() < CHECKED)])

    with compilations() as compiled:
        for _ in range(SETTLED):
            every_way()
        memory, arrays = [resident_mb()], [len(jax.live_arrays())]
        while (done := sum(counts.values())) < TOKENS:
            every_way()
            memory.append(resident_mb())
            arrays.append(len(jax.live_arrays()))
    assert not compiled, f"{len(compiled)} programs in {done} tokens: {compiled[:10]}"
    assert max(memory) - memory[0] < MORE_MB, memory
    assert max(arrays) <= arrays[0], arrays
    for one in chosen:
        check(one)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    checked = f"{sum(len(one.response) for one in chosen)} tokens of {len(chosen)} responses checked"
    print(f"{sum(counts.values())} tokens ({told}); {checked}; {memory[0]:.1f} MB, then at most {max(memory):.1f} MB")
    assert {one.way.name for one in chosen} == set(counts), "a way was not checked"


def test_a_compilation_is_seen_and_so_is_a_wrong_token(ways):
    """What the long test looks for is there to be found."""
    way, draw = ways[0], np.random.default_rng(1)
    with compilations() as compiled:
        first = say(way, draw, np.full(way.rows, 20), 30)
        seen = len(compiled)
        say(way, draw, np.full(way.rows, 600), 30)
    assert len(compiled) > seen
    for one in first[:2]:
        check(one)
        wrong = one.response.copy()
        wrong[7] = (wrong[7] + 1) % VOCABULARY
        with pytest.raises(AssertionError):
            check(Said(way, one.prompt, one.limit, one.seed, one.place, wrong))
