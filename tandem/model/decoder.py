"""One causal decoder for every family: a residual stream, and layers of attention and MLP that add to it.

It runs in two ways over the same weights: `__call__` on whole sequences, for training and measuring, and `extend` on a
few tokens after a key-value cache, for decoding. Letters in names and comments: B batch, T sequence, W width of a
cached pass, S cache length, D model width, H query heads, K key-value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.architecture import Activation, DecoderConfig, Norm
from tandem.model.attention import causal_mask, held_within, seen
from tandem.model.cache import KVCache
from tandem.model.parameters import AFTER_LAYERS, BEFORE_LAYERS, LAYER, Parameter, Start, present
from tandem.model.products import at_least_float32, dot, products
from tandem.model.rotary import Angles, angles, rotate
from tandem.model.stack import ROWS, SEQUENCES, AfterCache, States, WithinText, run, scan
from tandem.parallel.sharding import constrain

ACTIVATIONS = {
    Activation.silu: jax.nn.silu,
    Activation.gelu: lambda x: jax.nn.gelu(x, approximate=False),
    Activation.gelu_tanh: lambda x: jax.nn.gelu(x, approximate=True),
}


# Logit of a token that is not drafted, as of a trimmed decoder (tandem/model/layout.py): e to this power is 0 at any
# temperature below 10^6, and it is finite.
NEVER = -1e9


class Normalisation(nnx.Module):
    """A norm with a learned scale, and a bias where the mean is taken off too; computed in float32."""

    scale: nnx.Param
    bias: nnx.Param

    def __init__(self, kind: Norm, eps: float):
        self.kind, self.eps = kind, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind is Norm.rms:
            return normalise(x, self.eps) * self.scale[...]
        x32 = x.astype(at_least_float32(x.dtype))
        return normalise(x32 - jnp.mean(x32, axis=-1, keepdims=True), self.eps) * self.scale[...] + self.bias[...]


def normalise(x: jax.Array, eps: float) -> jax.Array:
    """`x` divided by its root mean square over the last axis."""
    x32 = x.astype(at_least_float32(x.dtype))
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)).astype(x.dtype)


class DecoderLayer(nnx.Module):
    """Attention and an MLP, each added to the residual stream; which parameters it has says the table."""

    attention_norm: Normalisation
    mlp_norm: Normalisation
    query: nnx.Param
    key: nnx.Param
    value: nnx.Param
    output: nnx.Param
    gate: nnx.Param
    up: nnx.Param
    down: nnx.Param

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs, without: Sequence[str] = ()):
        """`without` are parameters that a layer with given keys and values does not have."""
        self.head_dim, self.dtype, self.softcap = config.head_dim, dtype, config.attention_softcap
        self.activation, self.gated, self.parallel = config.activation, config.gated, config.parallel_residual
        self.query_scale = (config.head_dim if config.query_scale is None else config.query_scale) ** -0.5
        add_parameters(self, [row for row in LAYER if row.name not in without], config, rngs)

    def keys_and_values(self, x: jax.Array, turns: Angles) -> tuple[jax.Array, jax.Array]:
        """Rotated keys and plain values [B, T, K, E] of the layer inputs `x` [B, T, D], after the pre-attention
        norm."""
        keys, values = map(self._heads, self._products(self.attention_norm(x), "key", "value"))
        return rotate(self._norm("key_norm", keys), turns), values

    def queries(self, x: jax.Array, turns: Angles) -> jax.Array:
        """Rotated and scaled queries [B, T, H, E] of the layer inputs `x` [B, T, D]."""
        queries = self._heads(self._products(self.attention_norm(x), "query")[0])
        return rotate(self._norm("query_norm", queries), turns) * self.query_scale

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output [B, T, D] from its input and the attention's result [B, T, H * E]."""
        attended = self._norm("attention_post_norm", self._products(attended, "output")[0])
        between = x + attended
        return between + self._mlp(x if self.parallel else between)

    def _mlp(self, x: jax.Array) -> jax.Array:
        normed, activation = self.mlp_norm(x), ACTIVATIONS[self.activation]
        if self.gated:
            gate, up = self._products(normed, "gate", "up")
            inner = activation(gate) * up
        else:
            inner = activation(self._products(normed, "up")[0])
        return self._norm("mlp_post_norm", self._products(inner, "down")[0])

    def _products(self, x: jax.Array, *names: str) -> list[jax.Array]:
        made, biases = products(self, x, *names), [getattr(self, f"{name}_bias", None) for name in names]
        return [y if bias is None else y + bias[...] for y, bias in zip(made, biases, strict=True)]

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        """A norm that not all families have."""
        return getattr(self, name)(x) if hasattr(self, name) else x


class Decoder(nnx.Module):
    """A causal language model; tokens [B, T] → logits [B, T, V] in float32.

    `dtype` is that of its products with weights; everything between them is float32.
    """

    embedding: nnx.Param
    unembedding: nnx.Param
    kept: nnx.Variable  # of a trimmed decoder: the tokens that its output matrix has
    norm: Normalisation

    def __init__(self, config: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, jnp.dtype(dtype)
        add_parameters(self, BEFORE_LAYERS, config, rngs)
        self.layers = nnx.List([DecoderLayer(config, dtype=self.dtype, rngs=rngs) for _ in range(config.num_layers)])
        add_parameters(self, AFTER_LAYERS, config, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.states(tokens, self.config.num_layers)[-1])

    def embed(self, tokens: jax.Array, axes: tuple[str, ...] = ROWS) -> jax.Array:
        """Layer 1's input [B, T, D]; `axes` says what it is divided by on several devices."""
        table = self.embedding[...]
        if axes is SEQUENCES:
            # The batch is divided over the axis that divides widths, so widths are brought together before the lookup.
            table = constrain(table, "vocab", "whole")
        x = table[tokens]
        if x.dtype == jnp.uint16:  # as `pack_matrices` holds it
            x = jax.lax.bitcast_convert_type(x, jnp.bfloat16)
        x = constrain(x.astype(at_least_float32(self.dtype)), *axes)
        return x if self.config.embedding_scale == 1 else x * self.config.embedding_scale

    def logits(self, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Logits [B, T, V] in float32 from the last layer's output [B, T, D]; of the tokens `kept` [K] alone where they
        are given, [B, T, K]."""
        x = self.norm(x)
        if self.config.tie_embeddings:
            table = self.embedding[...]
            logits = dot(x, (table if kept is None else table[kept]).T, self.dtype)
        elif kept is not None:
            logits = dot(x, self.unembedding[...][:, kept], self.dtype)
        else:
            logits = products(self, x, "unembedding")[0]
        logits = held_within(logits, self.config.logits_softcap)
        if not hasattr(self, "kept"):
            return logits
        every = jnp.full((*logits.shape[:-1], self.config.vocab_size), NEVER, logits.dtype)
        return every.at[..., self.kept[...]].set(logits)

    def states(self, tokens: jax.Array, depth: int, *, remat: bool = False) -> list[jax.Array]:
        """The residual stream [B, T, D] after 0, 1, … `depth` layers: x^(0) … x^(depth) in the paper's notation."""
        plan = self.within_text(tokens.shape[1])[:depth]
        return run(self.layers, self.embed(tokens, SEQUENCES), plan, axes=SEQUENCES, remat=remat)[0]

    def scanned_states(self, tokens: jax.Array, reads: Sequence[int], *, remat: bool = False) -> States:
        """`states`, but only those after as many layers as `reads` says, by one loop over the layers."""
        plan = self.within_text(tokens.shape[1])
        return scan(self.layers, self.embed(tokens, SEQUENCES), plan, reads=[0, *reads], remat=remat)

    def within_text(self, length: int) -> list[WithinText]:
        """The plan of training: whole sequences of that length."""
        masks = self.masks(lambda window: causal_mask(length, window))
        turns = self.angles(jnp.arange(length)[None], length)
        return [WithinText(own, mask) for own, mask in zip(turns, masks, strict=True)]

    def extend(self, tokens: jax.Array, starts: jax.Array, cache: KVCache) -> tuple[list[jax.Array], KVCache]:
        """Run `tokens` [B, W] at positions `starts` [B] … starts + W - 1 after what the cache holds before them.

        Returns the states [B, W, D] after 0 … L layers, and the cache with these positions written. Whatever it held at
        later positions is not read: rolling back is starting again from an earlier position.
        """
        positions = starts[:, None] + jnp.arange(tokens.shape[1])
        masks = self.masks(lambda window: seen(positions[..., None], jnp.arange(cache.length), window))
        plan = [
            AfterCache(*of_layer, starts)
            for of_layer in zip(self.angles(positions), masks, cache.keys, cache.values, strict=True)
        ]
        states, written = run(self.layers, self.embed(tokens), plan)
        keys, values = zip(*written, strict=True)
        return states, KVCache(keys, values)

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """A cache of zeros for `batch` rows of `length` positions."""
        heads, dtype = self.config.num_kv_heads, at_least_float32(self.dtype)
        return KVCache.empty(self.config.num_layers, batch, heads, length, self.config.head_dim, dtype)

    def angles(self, positions: jax.Array, length: int | None = None) -> list[Angles]:
        """What turns queries and keys at `positions` [B or 1, T] in each layer."""
        return angles(positions, self.config, length)

    def masks(self, of_window: Any) -> list[jax.Array]:
        """`of_window(window)` for the window of each layer, made once for layers that have the same."""
        windows = [self.config.window_of(layer) for layer in range(self.config.num_layers)]
        made = {window: of_window(window) for window in dict.fromkeys(windows)}
        return [made[window] for window in windows]


def add_parameters(module: Any, rows: Iterable[Parameter], config: DecoderConfig, rngs: nnx.Rngs) -> None:
    """Give a module the parameters of these rows of the table, with their first values."""
    for row, shape in present(rows, config):
        owner, _, name = row.name.rpartition(".")
        if owner and not hasattr(module, owner):
            setattr(module, owner, Normalisation(config.norm, config.norm_eps))
        value = first_value(row.start, shape, rngs, config.num_layers)
        setattr(getattr(module, owner) if owner else module, name, nnx.Param(value))


def first_value(start: Start, shape: tuple[int, ...], rngs: nnx.Rngs, num_layers: int = 1) -> jax.Array:
    """A new parameter of this shape; residual branches are the smaller the more layers there are."""
    if start is Start.ones:
        return jnp.ones(shape)
    if start is Start.zeros:
        return jnp.zeros(shape)
    drawn = jax.random.normal(rngs.params(), shape)
    if start is Start.embedding:
        return drawn * 0.02
    return drawn * (shape[0] ** -0.5 * ((2 * num_layers) ** -0.5 if start is Start.branch else 1.0))
