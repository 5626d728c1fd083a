"""What is minimised: cross entropy with the text, distillation from the primary, for plain and for tandem models.

A loss function takes (trained, fixed, tokens [B, T + 1], key) and gives the mean over tokens with its parts. Weights
that are not trained are in `fixed`, apart from `trained`, so that no gradient, optimizer state or stored activation of
theirs can exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.config import Divergence, PrimaryMode
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.stack import States
from tandem.model.tandem import Tandem, block_numbers

Weights = Any  # a pytree of arrays

# Draft k + 1 of a block is worth this much of draft k in a head's loss: it counts only where all before it are accepted
# (arXiv 2401.10774, section 2.2.1).
DRAFT_WEIGHT = 0.8

LossFunction = Callable[[Weights, Weights, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


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


def _mixed_loss(
    logits: jax.Array,
    targets: jax.Array,
    teacher_logits: jax.Array | None,
    distil_weight: float,
    temperature: float,
    divergence: Divergence,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(1 - λ) · cross entropy + λ · distillation, means over tokens (paper section 4: λ = 0.5 in stage 2), a token
    counting as much as `weights` [B or 1, T] says. `temperature` is that of KL."""

    def mean(losses: jax.Array) -> jax.Array:
        return jnp.mean(losses) if weights is None else jnp.mean(losses * weights) / jnp.mean(weights)

    text = mean(cross_entropy(logits, targets))
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
    remat: bool = False,
    scan_layers: bool = False,
) -> LossFunction:
    """The loss of a decoder on its own; with `teacher` (its weights are `fixed`) that of Gecko-Distil."""

    def loss(trained: Weights, fixed: Weights, tokens: jax.Array, key: jax.Array):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        decoder = nnx.merge(model, trained)
        logits = decoder.logits(_last_state(decoder, inputs, remat, scan_layers))
        teacher_logits = None
        if teacher is not None:
            reading = nnx.merge(teacher, fixed)
            teacher_logits = reading.logits(_last_state(reading, inputs, False, scan_layers))
        return _mixed_loss(logits, targets, teacher_logits, distil_weight, temperature, divergence)

    return loss


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
    remat: bool = False,
    scan_layers: bool = False,
) -> LossFunction:
    """The loss of a tandem in block mode; `distil_weight` None is stage 1, a number is λ of stage 2. The k-th position
    of a block, from 0, counts `position_decay`^k.

    Frozen: `trained` is the tandem's weights and `fixed` the primary's. Joint: `trained` is {"tandem", "primary"}, of
    the primary what `learning_part` says, and `fixed` the rest. With several `gammas` each sequence draws one: block
    numbers are data, so all share one compiled program.
    """
    lengths = jnp.array(list(gammas))

    def loss(trained: Weights, fixed: Weights, tokens: jax.Array, key: jax.Array):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        frozen = mode is PrimaryMode.frozen
        tandem = nnx.merge(model, trained if frozen else trained["tandem"])
        decoder = nnx.merge(primary, *([fixed] if frozen else [trained["primary"], fixed or {}]))
        needs_logits = distil_weight is not None or mode is PrimaryMode.joint_both
        # Stage 1 with a frozen primary runs it only as deep as the tandem reads.
        depth = decoder.config.num_layers if needs_logits else tandem.depth
        states = _states(decoder, inputs, depth, tandem.layer_map, remat and not frozen, scan_layers)
        primary_logits = decoder.logits(states[depth]) if needs_logits else None

        gamma = jax.random.choice(key, lengths, (inputs.shape[0], 1))
        blocks = block_numbers(inputs.shape[1], gamma)
        logits = tandem(inputs, states, blocks, remat=remat, scan_layers=scan_layers)
        teacher_logits = None if distil_weight is None else primary_logits
        place = jnp.arange(inputs.shape[1]) % gamma
        weights = None if position_decay == 1 else position_decay ** place.astype(jnp.float32)
        weight = distil_weight or 0.0
        total, parts = _mixed_loss(logits, targets, teacher_logits, weight, temperature, divergence, weights)
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


def head_loss(
    model: nnx.GraphDef[HeadModule],
    primary: nnx.GraphDef[Decoder],
    *,
    distil_weight: float | None = None,
    temperature: float = 1.0,
    divergence: Divergence = Divergence.kl,
    remat: bool = False,
    scan_layers: bool = False,
) -> LossFunction:
    """The loss of a head on the frozen primary (`fixed`), whose vocabulary it shares: the mean over its drafts,
    weighted by `DRAFT_WEIGHT`, each trained at every position of the text.

    `distil_weight` None is stage 1, a number is λ of stage 2, as for a tandem.
    """

    def loss(trained: Weights, fixed: Weights, tokens: jax.Array, key: jax.Array):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        head, decoder = nnx.merge(model, trained), nnx.merge(primary, fixed)
        reads = head.config.reads(decoder.config)
        depth = max(reads) if distil_weight is None else decoder.config.num_layers
        states = _states(decoder, inputs, depth, reads, False, scan_layers)
        teacher_logits = None if distil_weight is None else decoder.logits(states[depth])

        def one(x: jax.Array, k: int) -> tuple[jax.Array, dict[str, jax.Array]]:
            teacher = None if teacher_logits is None else teacher_logits[:, k + 1 :]
            weight = distil_weight or 0.0
            return _mixed_loss(decoder.logits(x), targets[:, k + 1 :], teacher, weight, temperature, divergence)

        one = jax.checkpoint(one, static_argnums=1) if remat else one
        drafts = [one(x, k) for k, x in enumerate(head.unroll(decoder, inputs, states))]
        weights = jnp.asarray([DRAFT_WEIGHT**k for k in range(len(drafts))])
        weights /= jnp.sum(weights)
        return jax.tree.map(lambda *values: jnp.dot(jnp.stack(values), weights), *drafts)

    return loss
