"""Block decoding: draft up to γ tokens, run the primary once over them, keep what it confirms; one compiled loop.

Everything is this loop. Autoregressive decoding is γ = 0 with no drafter. SPEED verifies (paper section 3, Tandem +
SPEED). Tandem standalone keeps every draft: the primary's pass only brings new representations and the free token. So a
baseline and a method always share arithmetic. A stopping rule shortens a row's block, a law draws instead of taking the
most probable token; both leave the loop as it is.

A row's `position` is that of its last known token, the first one that the primary has not read. Rolling back after a
rejection is that integer: what stands later in tokens and caches is stale, masked, and overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.config import Verification
from tandem.decoding.drafters import Drafter, Weights
from tandem.decoding.sampler import Keys, Sampler, row_keys
from tandem.decoding.sampling import GREEDY, SamplingConfig
from tandem.decoding.stopping import UNKNOWN, Draft, Fixed, StoppingRule, remember
from tandem.decoding.verification import acceptance, accepted_count, residual
from tandem.model.bound import Bound
from tandem.model.cache import KVCache, write
from tandem.model.decoder import Decoder
from tandem.model.reading import read_prompts
from tandem.model.stack import ROWS

NEVER = np.iinfo(np.int32).max


class EngineWeights(NamedTuple):
    """The weights of all that an engine runs; None for what it runs without, or what has none."""

    primary: Weights
    drafter: Weights = None
    rule: Weights = None

    @classmethod
    def of(
        cls,
        primary: Bound[nnx.GraphDef[Decoder]],
        drafter: Bound[Drafter] | None = None,
        rule: Bound[StoppingRule] | None = None,
    ) -> EngineWeights:
        """Those of what an engine's definitions are bound to."""
        return cls(primary.weights, drafter and drafter.weights, rule and rule.weights)


@jax.tree_util.register_dataclass
@dataclass
class DecodingState:
    """The loop's state; B rows."""

    tokens: jax.Array  # [B, length] prompt and response; behind `position` stale
    position: jax.Array  # [B] index of the last known token
    end: jax.Array  # [B] index of the first stop token; NEVER before there is one
    cache: KVCache  # the primary's, `length` positions
    drafter: Any  # the drafter's own state; None without one
    chance: Any  # what random draws come from; None where nothing is drawn
    recent: jax.Array  # [B] share of accepted drafts, the latest counting most
    primary_runs: jax.Array  # [B] passes of the primary, prefill not counted
    primary_positions: jax.Array  # [B] what those passes read, padding too
    blocks: jax.Array  # [B, γ + 1, γ + 1] how many blocks had n drafts (second axis), of which m accepted (third)

    @property
    def accepted_lengths(self) -> jax.Array:
        """[B, γ + 1]: how many blocks had 0 … γ drafts accepted."""
        return jnp.sum(self.blocks, axis=1)

    @property
    def secondary_runs(self) -> jax.Array:
        """[B]: drafts made."""
        return jnp.sum(self.blocks, axis=2) @ jnp.arange(self.blocks.shape[1])


class Engine:
    """Decoding with one pair, compiled once for each shape of prompts.

    `gamma` is the number of drafts of a block, with a stopping rule the greatest. `width` is the number of positions of
    a pass of the primary, at least γ + 1; a wider one pads. Two engines of one width run the same arithmetic on every
    position, which makes their greedy outputs comparable bit by bit. Without it a pass has γ + 1 positions, or with a
    stopping rule the least of `widths_to(γ + 1)` that holds the longest block of a row. With `verify=False` all drafts
    are kept (standalone). A row ends with the first of `stop_tokens` that it emits.
    """

    def __init__(
        self,
        primary: nnx.GraphDef[Decoder],
        drafter: Drafter | None = None,
        *,
        gamma: int = 0,
        width: int | None = None,
        verify: bool = True,
        sampling: SamplingConfig = GREEDY,
        verification: Verification = Verification.token,
        rule: StoppingRule | None = None,
        stop_tokens: Sequence[int] = (),
        sampler: Sampler | None = None,
    ):
        if gamma and drafter is None:
            raise ValueError("a block length above 0 needs a drafter")
        self.primary, self.drafter, self.gamma, self.verify = primary, drafter if gamma else None, gamma, verify
        self.width = gamma + 1 if width is None else width
        if self.width <= gamma:
            raise ValueError(f"width {self.width} cannot hold {gamma} drafts and the token before them")
        self.rule = Fixed() if rule is None else rule
        self.widths = (self.width,) if width is not None or isinstance(self.rule, Fixed) else widths_to(self.width)
        if not verify and not isinstance(self.rule, Fixed):
            raise ValueError("decoding that keeps every draft has blocks of one length")
        self.sampling, self.verification, self.stop_tokens = sampling, verification, tuple(stop_tokens)
        self.sampler: Sampler = Keys() if sampler is None else sampler
        self.prefill = jax.jit(self._prefill, static_argnames="max_new_tokens")
        self.decode = jax.jit(self._decode, donate_argnames="state")

    def _prefill(
        self,
        weights: EngineWeights,
        prompts: jax.Array,
        lengths: jax.Array,
        chance: Any = None,
        *,
        max_new_tokens: int,
    ) -> DecodingState:
        """The state after `prompts` [B, P], of which the first `lengths` [B] tokens count, at least 2.

        Decoding starts with each prompt's last token, as if the primary had read only those before it: there is no free
        token after the prompt (paper section 3, "representation generation only"). What the pass writes at the last
        token and in the padding is stale from the start. `chance` is the state of random draws, by default keys of
        seed 0.
        """
        batch, width = prompts.shape
        length = width + max_new_tokens + self.width
        decoder = nnx.merge(self.primary, weights.primary)
        states, cache = read_prompts(decoder, prompts, length, ROWS)
        lengths = lengths.astype(jnp.int32)
        if chance is None and not self.sampling.greedy:
            chance = row_keys(0, batch)
        return DecodingState(
            tokens=jnp.pad(prompts.astype(jnp.int32), ((0, 0), (0, length - width))),
            position=lengths - 1,
            end=jnp.full(batch, NEVER, jnp.int32),
            cache=cache,
            drafter=self.drafter and self.drafter.start(weights.drafter, prompts, lengths, states, length),
            chance=chance,
            recent=jnp.full(batch, UNKNOWN, jnp.float32),
            primary_runs=jnp.zeros(batch, jnp.int32),
            primary_positions=jnp.zeros(batch, jnp.int32),
            blocks=jnp.zeros((batch, self.gamma + 1, self.gamma + 1), jnp.int32),
        )

    def _decode(self, weights: EngineWeights, state: DecodingState, limits: jax.Array) -> DecodingState:
        """Run until each row has ended, or its `position` has reached `limits` [B], the index of the last token wanted,
        or passed it."""
        block = partial(self.block, weights, limits)
        return jax.lax.while_loop(lambda state: jnp.any(running(state, limits)), block, state)

    def block(self, weights: EngineWeights, limits: jax.Array, state: DecodingState) -> DecodingState:
        """One block: drafts, one pass of the primary, and the position moved past what is kept."""
        alive = running(state, limits)
        block = self.draft_block(weights, state, alive)
        state = replace(state, drafter=block.drafter, chance=block.chance)
        if len(self.widths) == 1:
            return self.verify_block(weights, state, block, alive, self.width)
        needed, narrower = 1 + jnp.max(jnp.where(alive, block.drafted, 0)), 0
        for width in self.widths:

            def turn(carry: tuple[jax.Array, DecodingState], width: int = width) -> tuple[jax.Array, DecodingState]:
                return jnp.zeros((), bool), self.verify_block(weights, carry[1], block, alive, width)

            # A loop of one turn or none, as it keeps the caches in place: the branches of a conditional copy them.
            chosen = (narrower < needed) & (needed <= width)
            state = jax.lax.while_loop(lambda carry: carry[0], turn, (chosen, state))[1]
            narrower = width
        return state

    def verify_block(
        self, weights: EngineWeights, state: DecodingState, block: Block, alive: jax.Array, width: int
    ) -> DecodingState:
        """One pass of the primary over `width` positions, which no row's drafts exceed, and what is kept."""
        decoder = nnx.merge(self.primary, weights.primary)
        gamma = min(self.gamma, width - 1)
        drafts, drafted = block.tokens[:, :gamma], block.drafted
        current = take(state.tokens, state.position, 1)
        padding = jnp.zeros((current.shape[0], width - 1 - gamma), jnp.int32)
        read = jnp.concatenate([current, drafts, padding], axis=1)
        states, cache = decoder.extend(read, state.position, state.cache)
        chance = state.chance
        if not self.verify:
            free = decoder.logits(states[-1][:, gamma : gamma + 1])[:, 0]
            following, chance = self._draw(chance, state.position, self.gamma + 1, free, alive)
            accepted = drafted
            emitted = jnp.concatenate([drafts, following[:, None]], axis=1)
        else:
            # The padding has logits too: engines of one width must also share the shape of this product.
            logits = decoder.logits(states[-1])[:, : gamma + 1]
            if self.sampling.greedy:
                targets = greedy(logits)
                right = (drafts == targets[:, :-1]) & (jnp.arange(gamma) < drafted[:, None])
                accepted = accepted_count(Verification.token, right)
                # Accepted drafts are the primary's own choices, so what follows the current token is `targets`.
                emitted = targets
            else:
                laws = block.laws if block.laws is None else block.laws[:, :gamma]
                cut = replace(block, tokens=drafts, laws=laws, chance=chance)
                accepted, following, chance = self._verify(state.position, logits, cut, alive)
                place = jnp.arange(gamma + 1)
                emitted = jnp.where(place < accepted[:, None], jnp.pad(drafts, ((0, 0), (0, 1))), following[:, None])
        drafter_state = state.drafter
        if self.drafter is not None:
            drafter_state = self.drafter.update(weights.drafter, drafter_state, read, states, state.position)
        lived = alive.astype(jnp.int32)
        outcome = jax.nn.one_hot(drafted * (self.gamma + 1) + accepted, (self.gamma + 1) ** 2, dtype=jnp.int32)
        return DecodingState(
            tokens=write(state.tokens, emitted, state.position + 1),
            position=state.position + lived * (accepted + 1),
            end=self._end(state, emitted, accepted, alive),
            cache=cache,
            drafter=drafter_state,
            chance=chance,
            recent=jnp.where(alive, remember(state.recent, drafted, accepted), state.recent),
            primary_runs=state.primary_runs + lived,
            primary_positions=state.primary_positions + lived * width,
            blocks=state.blocks + (lived[:, None] * outcome).reshape(state.blocks.shape),
        )

    def draft_block(self, weights: EngineWeights, state: DecodingState, alive: jax.Array) -> Block:
        """Drafts after the last known token, until no row goes on; the drafter's state."""
        batch, gamma, drafter, rule = state.tokens.shape[0], self.gamma, self.drafter, self.rule
        if drafter is None:
            empty = jnp.zeros((batch, 0), jnp.int32)
            return Block(empty, jnp.zeros(batch, jnp.int32), None, state.chance, None)
        fixed, own = isinstance(rule, Fixed), weights.drafter

        def one(index: jax.Array | int, given: jax.Array, starts: jax.Array, carry: Drafting) -> Drafting:
            logits, drafter_state = drafter.draft(own, carry.block.drafter, given, starts, index, state.cache)
            token, chance = self._draw(carry.block.chance, state.position, index, logits, carry.active)
            block = carry.block
            laws = block.laws
            if laws is not None:
                laws = jax.lax.dynamic_update_slice_in_dim(
                    laws, self.sampling.probabilities(logits)[:, None].astype(laws.dtype), index, axis=1
                )
            tokens = jax.lax.dynamic_update_slice_in_dim(block.tokens, token[:, None], index, axis=1)
            drafted = block.drafted + carry.active
            on, rule_state = carry.active, carry.rule
            if not fixed:
                seen = Draft(jnp.asarray(index), state.position + 1 + index, token, logits, state.recent)
                on, rule_state = rule.go_on(weights.rule, rule_state, seen)
            return Drafting(Block(tokens, drafted, laws, chance, drafter_state), carry.active & on, rule_state)

        first = state.position - (drafter.reach - 1)
        given = take(state.tokens, first, drafter.reach)
        laws = None
        if self.verify and not self.sampling.greedy:
            shape = jax.eval_shape(lambda: drafter.draft(own, state.drafter, given, first, 0, state.cache)[0])
            laws = jnp.zeros((batch, gamma, shape.shape[-1]), jnp.promote_types(shape.dtype, jnp.float32))
        block = Block(
            jnp.zeros((batch, gamma), jnp.int32), jnp.zeros(batch, jnp.int32), laws, state.chance, state.drafter
        )
        begun = Drafting(block, jnp.ones_like(alive) if fixed else alive, rule.begin(weights.rule, batch))
        drafting = one(0, given, first, begun)

        def more(carry: tuple[jax.Array, Drafting]) -> tuple[jax.Array, Drafting]:
            index, drafting = carry
            token = jax.lax.dynamic_slice_in_dim(drafting.block.tokens, index - 1, 1, axis=1)
            return index + 1, one(index, token, state.position + index, drafting)

        def goes_on(carry: tuple[jax.Array, Drafting]) -> jax.Array:
            return (carry[0] < gamma) & (True if fixed else jnp.any(carry[1].active))

        return jax.lax.while_loop(goes_on, more, (jnp.int32(1), drafting))[1].block

    def _draw(
        self, chance: Any, position: jax.Array, slot: jax.Array | int, logits: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, Any]:
        """A token [B] by the law of `logits` [B, V]."""
        if self.sampling.greedy:
            return greedy(logits), chance
        return self.sampler.categorical(chance, position, slot, self.sampling.probabilities(logits), active)

    def _verify(
        self, position: jax.Array, logits: jax.Array, block: Block, active: jax.Array
    ) -> tuple[jax.Array, jax.Array, Any]:
        """How many drafts of `block` are accepted [B], the token after them [B], and the state of random draws."""
        p, chance = self.sampling.probabilities(logits), block.chance
        if block.laws is None:
            following, chance = self._draw(chance, position, self.gamma + 1, logits[:, 0], active)
            return block.drafted, following, chance
        chances, weight = acceptance(self.verification, p, block.laws, block.tokens, block.drafted)
        # As many events whatever the pass's width, so that what is drawn does not hang on it.
        unread = self.gamma - chances.shape[1]
        events, chance = self.sampler.bernoulli(
            chance, position, self.gamma, jnp.pad(chances, ((0, 0), (0, unread))), active
        )
        accepted = accepted_count(self.verification, events)
        after = residual(p, block.laws, weight, accepted, block.drafted)
        following, chance = self.sampler.categorical(chance, position, self.gamma + 1, after, active)
        return accepted, following, chance

    def _end(self, state: DecodingState, emitted: jax.Array, accepted: jax.Array, alive: jax.Array) -> jax.Array:
        """The index of each row's first stop token [B], of those emitted so far."""
        if not self.stop_tokens:
            return state.end
        stops = jnp.isin(emitted, jnp.asarray(self.stop_tokens)) & (jnp.arange(emitted.shape[1]) <= accepted[:, None])
        found = state.position + 1 + jnp.argmax(stops, axis=1).astype(jnp.int32)
        return jnp.where(alive & jnp.any(stops, axis=1), found, state.end)


@jax.tree_util.register_dataclass
@dataclass
class Block:
    """The drafts of one block; B rows."""

    tokens: jax.Array  # [B, γ]
    drafted: jax.Array  # [B] how many of them count
    laws: jax.Array | None  # [B, γ, V] what each was drawn from; None where nothing is drawn or verified
    chance: Any
    drafter: Any


@jax.tree_util.register_dataclass
@dataclass
class Drafting:
    """The drafting loop's state."""

    block: Block
    active: jax.Array  # [B] rows whose next draft counts
    rule: Any


def widths_to(width: int) -> tuple[int, ...]:
    """The widths of passes over blocks of any number of drafts, ascending, of which the last is `width`: 2, 3, 5, 9 and
    18 for 18. A pass has at most twice the positions that it needs, and programs are few."""
    widths = [width]
    while widths[0] > 2:
        widths.insert(0, -(-widths[0] // 2))
    return tuple(widths)


def running(state: DecodingState, limits: jax.Array) -> jax.Array:
    """Rows [B] that want more tokens."""
    return state.position < jnp.minimum(limits, state.end)


def fan_out(state: DecodingState, num_samples: int, chance: Any = None) -> DecodingState:
    """The state of B prompts as that of B · num_samples responses, those of one prompt side by side.

    What the prefill computed is shared. `chance` [B · num_samples] is the state of random draws of the responses.
    """
    return replace(jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=0), state), chance=chance)


def greedy(logits: jax.Array) -> jax.Array:
    """The most probable token, […] int32, of `logits` […, V]; the first of equals.

    The greatest value and then its place are two reductions that a CPU runs as vectors. `argmax` is one of pairs, which
    it runs number by number, six times as long.
    """
    size = logits.shape[-1]
    highest = jnp.max(logits, axis=-1, keepdims=True)
    places = jnp.where(logits == highest, jnp.arange(size, dtype=jnp.int32), size)
    return jnp.minimum(jnp.min(places, axis=-1), size - 1)


def take(tokens: jax.Array, starts: jax.Array, width: int) -> jax.Array:
    """`width` tokens [B, width] of each row of `tokens` [B, length] from `starts` [B] on."""
    return jnp.take_along_axis(tokens, starts[:, None] + jnp.arange(width), axis=1)
