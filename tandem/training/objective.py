"""What is minimised: cross entropy with the text, distillation from the primary, for plain and for tandem models.

A loss function takes (trained, fixed, batch, key) and gives the mean over tokens with its parts. Weights that are not
trained are in `fixed`, apart from `trained`, so that no gradient, optimizer state or stored activation of theirs can
exist. A batch is tokens [B, T + 1], or with a frozen primary's recorded states (tandem/training/recording.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.config import Divergence, PrimaryMode
from tandem.data.packing import most_frequent
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.stack import SEQUENCES, States
from tandem.model.tandem import Tandem, block_numbers

Weights = Any  # a pytree of arrays

# Draft k + 1 of a block is worth this much of draft k in a head's loss: it counts only where all before it are accepted
# (arXiv 2401.10774, section 2.2.1).
DRAFT_WEIGHT = 0.8

Batch = Any  # tokens, or {"tokens", "states"}
LossFunction = Callable[[Weights, Weights, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Nats per token [B, T] of `targets` [B, T] under `logits` [B, T, V]."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Divergence KL(teacher ‖ student) per token [B, T] at a temperature, times its square (arXiv 1503.02531, section
    2).

    The teacher is a constant: no gradient passes through it.
    """
    return _distillation(logits, teacher_logits, temperature)


# With its gradient by hand, q - p: from the sums of the forward pass alone, in one pass over the vocabulary.
@jax.custom_vjp
def _distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    return _distillation_forward(logits, teacher_logits, temperature)[0]


def _distillation_forward(
    logits: jax.Array, teacher_logits: jax.Array, temperature: jax.Array | float
) -> tuple[jax.Array, Any]:
    student, teacher = logits / temperature, teacher_logits / temperature
    student_sum, teacher_sum = (jax.nn.logsumexp(side, axis=-1, keepdims=True) for side in (student, teacher))
    apart = jnp.sum(jnp.exp(teacher - teacher_sum) * (teacher - student), axis=-1)
    value = temperature**2 * (apart + (student_sum - teacher_sum)[..., 0])
    return value, (logits, teacher_logits, student_sum, teacher_sum, temperature)


def _distillation_backward(saved: Any, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    logits, teacher_logits, student_sum, teacher_sum, temperature = saved
    q, p = jnp.exp(logits / temperature - student_sum), jnp.exp(teacher_logits / temperature - teacher_sum)
    return temperature * (q - p) * cotangent[..., None], None, None


_distillation.defvjp(_distillation_forward, _distillation_backward)


def total_variation(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """½ Σ |teacher − student| per token [B, T]: the chance that a draft of the student's is rejected (arXiv 2211.17192,
    section 3.2). The teacher is a constant."""
    teacher = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits))
    return 0.5 * jnp.sum(jnp.abs(teacher - jax.nn.softmax(logits)), axis=-1)


class Vocabulary:
    """The part of the vocabulary that a loss counts: `kept` [K], rising token ids, of `size`.

    Logits are those of these tokens alone, of teacher and student, as laws over them. A token of the text outside has
    no cross entropy. Where the output matrix is the teacher's, what a state says of the tokens outside follows.
    """

    def __init__(self, kept: np.ndarray, size: int):
        self.kept = jnp.asarray(kept, jnp.int32)
        self.place = jnp.full(size, -1, jnp.int32).at[self.kept].set(jnp.arange(len(kept), dtype=jnp.int32))

    @classmethod
    def most_frequent(cls, tokens: np.ndarray, count: int, size: int) -> Vocabulary:
        """The `count` most frequent of `tokens`, of equally frequent ones the first ids."""
        return cls(most_frequent(tokens, count, size), size)


def _mixed_loss(
    logits: jax.Array,
    targets: jax.Array,
    teacher_logits: jax.Array | None,
    distil_weight: float,
    temperature: float,
    divergence: Divergence,
    weights: jax.Array | None = None,
    vocabulary: Vocabulary | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(1 - λ) · cross entropy + λ · distillation, means over tokens (paper section 4: λ = 0.5 in stage 2), a token
    counting as much as `weights` [B or 1, T] says. `temperature` is that of KL."""

    def mean(losses: jax.Array, weights: jax.Array | None = weights) -> jax.Array:
        if weights is None:
            return jnp.mean(losses)
        return jnp.sum(losses * weights) / jnp.sum(jnp.broadcast_to(weights, losses.shape))

    if vocabulary is None:
        text = mean(cross_entropy(logits, targets))
    else:
        place = vocabulary.place[targets]
        counted = (place >= 0) * (1.0 if weights is None else weights)
        text = mean(cross_entropy(logits, jnp.maximum(place, 0)), counted)
    if teacher_logits is None:
        return text, {"cross_entropy": text}
    if divergence is Divergence.tv:
        teacher = mean(total_variation(logits, teacher_logits))
    else:
        teacher = mean(distillation(logits, teacher_logits, temperature))
    return (1 - distil_weight) * text + distil_weight * teacher, {"cross_entropy": text, "distillation": teacher}


def decoder_loss(
    model: nnx.GraphDef[Decoder],
    teacher: nnx.GraphDef[Decoder] | None = None,
    *,
    distil_weight: float = 0.0,
    temperature: float = 1.0,
    divergence: Divergence = Divergence.kl,
    vocabulary: Vocabulary | None = None,
    remat: bool = False,
    scan_layers: bool = False,
) -> LossFunction:
    """The loss of a decoder on its own; with `teacher` (its weights are `fixed`) that of Gecko-Distil."""
    kept = None if vocabulary is None else vocabulary.kept

    def loss(trained: Weights, fixed: Weights, batch: Batch, key: jax.Array):
        inputs, targets, recorded = _unpack(batch)
        decoder = nnx.merge(model, trained)
        logits = decoder.logits(_last_state(decoder, inputs, remat, scan_layers), kept)
        teacher_logits = None
        if teacher is not None:
            reading = nnx.merge(teacher, fixed)
            depth = reading.config.num_layers
            states = recorded or {depth: _last_state(reading, inputs, False, scan_layers)}
            teacher_logits = reading.logits(states[depth], kept)
        return _mixed_loss(
            logits, targets, teacher_logits, distil_weight, temperature, divergence, vocabulary=vocabulary
        )

    return loss


def _unpack(batch: Batch) -> tuple[jax.Array, jax.Array, dict[int, jax.Array] | None]:
    """Inputs and targets [B, T], and the primary's states by layers where they were recorded."""
    tokens, states = (batch["tokens"], batch["states"]) if isinstance(batch, dict) else (batch, None)
    if states is not None:
        states = {layer: state.astype(jnp.float32) for layer, state in states.items()}
    return tokens[:, :-1], tokens[:, 1:], states


def _last_state(decoder: Decoder, tokens: jax.Array, remat: bool, scan_layers: bool) -> jax.Array:
    depth = decoder.config.num_layers
    return _states(decoder, tokens, depth, [depth], remat, scan_layers)[depth]


def _states(
    decoder: Decoder, tokens: jax.Array, depth: int, reads: Sequence[int], remat: bool, scan_layers: bool
) -> States:
    """The states [B, T, D] after 0 … `depth` layers, or by a loop over layers those that are in `reads`."""
    if scan_layers:
        return decoder.scanned_states(tokens, [*reads, depth], remat=remat)
    return decoder.states(tokens, depth, remat=remat)


def tandem_loss(
    model: nnx.GraphDef[Tandem],
    primary: nnx.GraphDef[Decoder],
    *,
    mode: PrimaryMode = PrimaryMode.frozen,
    gammas: Sequence[int] = (2,),
    distil_weight: float | None = None,
    temperature: float = 1.0,
    divergence: Divergence = Divergence.kl,
    position_decay: float = 1.0,
    vocabulary: Vocabulary | None = None,
    remat: bool = False,
    scan_layers: bool = False,
) -> LossFunction:
    """The loss of a tandem in block mode; `distil_weight` None is stage 1, a number is λ of stage 2. The k-th position
    of a block, from 0, counts `position_decay`^k.

    Frozen: `trained` is the tandem's weights and `fixed` the primary's. Joint: `trained` is {"tandem", "primary"}, of
    the primary what `learning_part` says, and `fixed` the rest. With several `gammas` each sequence draws one: block
    numbers are data, so all share one compiled program.
    """
    lengths, kept = jnp.array(list(gammas)), None if vocabulary is None else vocabulary.kept

    def loss(trained: Weights, fixed: Weights, batch: Batch, key: jax.Array):
        inputs, targets, recorded = _unpack(batch)
        frozen = mode is PrimaryMode.frozen
        tandem = nnx.merge(model, trained if frozen else trained["tandem"])
        decoder = nnx.merge(primary, *([fixed] if frozen else [trained["primary"], fixed or {}]))
        needs_logits = distil_weight is not None or mode is PrimaryMode.joint_both
        # Stage 1 with a frozen primary runs it only as deep as the tandem reads.
        depth = decoder.config.num_layers if needs_logits else tandem.depth
        if recorded is None:
            states = _states(decoder, inputs, depth, tandem.layer_map, remat and not frozen, scan_layers)
        else:
            states = {0: decoder.embed(inputs, SEQUENCES), **recorded}
        primary_logits = decoder.logits(states[depth]) if needs_logits else None

        gamma = jax.random.choice(key, lengths, (inputs.shape[0], 1))
        blocks = block_numbers(inputs.shape[1], gamma)
        logits = tandem(inputs, states, blocks, kept, remat=remat, scan_layers=scan_layers)
        teacher_logits = None
        if distil_weight is not None:
            teacher_logits = primary_logits if kept is None else decoder.logits(states[depth], kept)
        place = jnp.arange(inputs.shape[1]) % gamma
        weights = None if position_decay == 1 else position_decay ** place.astype(jnp.float32)
        weight = distil_weight or 0.0
        total, parts = _mixed_loss(
            logits, targets, teacher_logits, weight, temperature, divergence, weights, vocabulary
        )
        if mode is PrimaryMode.joint_both:
            assert primary_logits is not None
            parts["primary_cross_entropy"] = jnp.mean(cross_entropy(primary_logits, targets))
            total = total + parts["primary_cross_entropy"]
        return total, parts

    return loss


def learning_part(mode: PrimaryMode, depth: int, weights: Weights) -> tuple[Weights, Weights]:
    """The primary's weights that a joint mode trains, and those that no gradient reaches.

    By the secondary's loss alone (paper section 2, configuration b) the primary learns through the states that the
    tandem reads, after `depth` layers at most. What lies behind must not be among the trained: weight decay would
    shrink it.
    """

    def learns(path: tuple[Any, ...], _: Any) -> bool:
        read = path[0] == "embedding" or (path[0] == "layers" and int(path[1]) < depth)
        return read or mode is PrimaryMode.joint_both

    return nnx.split_state(weights, learns, ...)  # type: ignore[return-value]


def held_part(weights: Weights, names: Collection[str]) -> tuple[Weights, Weights]:
    """The weights that are trained, and those of `names`, which are not: what a model shares with another."""
    held, trained = nnx.split_state(weights, lambda path, _: ".".join(map(str, path)) in names, ...)
    return trained, held


def holding(loss: LossFunction) -> LossFunction:
    """`loss` where a part of what it trains is held still: `trained` is without it, `fixed` is {"held": that part,
    "rest": what `loss` takes as fixed}."""

    def partly(trained: Weights, fixed: Weights, batch: Batch, key: jax.Array):
        return loss(nnx.merge_state(trained, fixed["held"]), fixed["rest"], batch, key)

    return partly


def head_loss(
    model: nnx.GraphDef[HeadModule],
    primary: nnx.GraphDef[Decoder],
    *,
    distil_weight: float | None = None,
    temperature: float = 1.0,
    divergence: Divergence = Divergence.kl,
    vocabulary: Vocabulary | None = None,
    remat: bool = False,
    scan_layers: bool = False,
) -> LossFunction:
    """The loss of a head on the frozen primary (`fixed`), whose vocabulary it shares: the mean over its drafts,
    weighted by `DRAFT_WEIGHT`, each trained at every position of the text.

    `distil_weight` None is stage 1, a number is λ of stage 2, as for a tandem.
    """

    kept = None if vocabulary is None else vocabulary.kept

    def loss(trained: Weights, fixed: Weights, batch: Batch, key: jax.Array):
        inputs, targets, recorded = _unpack(batch)
        head, decoder = nnx.merge(model, trained), nnx.merge(primary, fixed)
        reads = head.config.reads(decoder.config)
        depth = max(reads) if distil_weight is None else decoder.config.num_layers
        if recorded is None:
            states = _states(decoder, inputs, depth, reads, False, scan_layers)
        else:
            states = {0: decoder.embed(inputs, SEQUENCES), **recorded}
        teacher_logits = None if distil_weight is None else decoder.logits(states[depth], kept)

        def one(x: jax.Array, k: int) -> tuple[jax.Array, dict[str, jax.Array]]:
            teacher = None if teacher_logits is None else teacher_logits[:, k + 1 :]
            given = (decoder.logits(x, kept), targets[:, k + 1 :], teacher, distil_weight or 0.0)
            return _mixed_loss(*given, temperature, divergence, vocabulary=vocabulary)

        one = jax.checkpoint(one, static_argnums=1) if remat else one
        drafts = [one(x, k) for k, x in enumerate(head.unroll(decoder, inputs, states))]
        weights = jnp.asarray([DRAFT_WEIGHT**k for k in range(len(drafts))])
        weights /= jnp.sum(weights)
        return jax.tree.map(lambda *values: jnp.dot(jnp.stack(values), weights), *drafts)

    return loss
