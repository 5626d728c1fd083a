"""One causal decoder for every model: RMSNorm, rotary positions, grouped-query attention, gated MLP (the Llama shape).

It runs in two ways over the same weights: `__call__` on whole sequences, for training and measuring, and `extend` on a
few tokens after a key-value cache, for decoding. Letters in names and comments: B batch, T sequence, W width of a
cached pass, S cache length, D model width, H query heads, K key-value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.config import DecoderConfig
from tandem.model.matrices import at_least_float32, dot, products
from tandem.model.scan import scan_layers
from tandem.parallel.sharding import constrain, on_mesh

MOST_ROWS_WRITTEN_ONE_BY_ONE = 16

# On several devices the residual stream [B, T, D] is divided by rows alone; what a matrix's division makes of its
# products is summed up before it joins the stream.
SEQUENCES = ("batch", "whole", "whole")
ROWS = ("rows", "whole", "whole")

# The residual stream by the number of layers that it has been through; a mapping where not all of it is kept.
States = Sequence[jax.Array] | Mapping[int, jax.Array]


@jax.tree_util.register_dataclass
@dataclass
class Source:
    """Keys and values [B, S, K, E] of the positions that `mask` [B or 1, T, S] (true: visible) lets each query read."""

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclass
class KVCache:
    """Keys and values of every layer, each [B, K, S, E]; entry m belongs to position m, whoever wrote it last.

    Heads come before positions, as the products of attention want them: a CPU would otherwise turn every cache around
    in every pass.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, layers: int, batch: int, heads: int, length: int, head_dim: int, dtype: Any) -> KVCache:
        """A cache of zeros for `length` positions, and one to spare, which `extended` may write beyond the last."""
        shape, axes = (batch, heads, length + 1, head_dim), ("rows", "kv_heads", "whole", "whole")
        zeros = [constrain(jnp.zeros(shape, dtype), *axes) for _ in range(2 * layers)]
        return cls(tuple(zeros[::2]), tuple(zeros[1::2]))

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def extended(self, layer: int, keys: jax.Array, values: jax.Array, starts: jax.Array) -> KVCache:
        """This cache with `keys` and `values` [B, W, K, E] of one layer at positions `starts` [B] and on."""

        def put(buffers: tuple[jax.Array, ...], new: jax.Array) -> tuple[jax.Array, ...]:
            new = new.swapaxes(1, 2)
            if new.shape[2] == 1:
                # XLA takes an update of one position for so cheap that it repeats it for each reader, on a copy of the
                # whole buffer. The second position written is a later one, not read before it is written again.
                new = jnp.pad(new, ((0, 0), (0, 0), (0, 1), (0, 0)))
            return (*buffers[:layer], write(buffers[layer], new, starts, axis=2), *buffers[layer + 1 :])

        return KVCache(put(self.keys, keys), put(self.values, values))


def rotary(positions: jax.Array, head_dim: int, theta: float, length: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B or 1, T, 1, E/2] of the rotary embedding (RoFormer, arXiv 2104.09864) at `positions` [B or
    1, T], all of them less than `length` where that is given.

    With a length they are looked up in a table. XLA otherwise takes them for cheap, and computes them anew in every
    layer for every head and row, which takes a CPU longer than the rotation.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = (positions if length is None else jnp.arange(length))[..., None].astype(jnp.float32) * frequencies
    turns = jnp.cos(angles), jnp.sin(angles)
    if length is not None:
        turns = (jnp.take(table, positions, axis=0, mode="clip") for table in turns)
    cos, sin = (turn[:, :, None, :] for turn in turns)
    return cos, sin


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`x` [B, T, heads, E] turned by the rotary angles, the first half of E paired with the second."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(queries: jax.Array, sources: Sequence[Source]) -> jax.Array:
    """One softmax over all sources, [B, T, H, E] → [B, T, H * E].

    The sources are aligned: entry m of each is position m, and a query sees position m in at most one of them. So the
    logits of several sources fit in the space of one, and the softmax over them is the softmax over their union.
    """
    batch, width, heads, head_dim = queries.shape
    kv_heads = sources[0].keys.shape[2]
    grouped = queries.reshape(batch, width, kv_heads, heads // kv_heads, head_dim) * head_dim**-0.5
    logits = jnp.asarray(-jnp.inf, at_least_float32(queries.dtype))
    for source in sources:
        scores = jnp.einsum(
            "btkge,bske->bkgts", grouped, source.keys, preferred_element_type=at_least_float32(queries.dtype)
        )
        logits = jnp.where(source.mask[:, None, None], scores, logits)
    weights = jax.nn.softmax(logits, axis=-1).astype(queries.dtype)
    if len(sources) == 1:
        mixed = jnp.einsum("bkgts,bske->btkge", weights, sources[0].values)
    else:
        mixed = sum(
            jnp.einsum("bkgts,bske->btkge", jnp.where(source.mask[:, None, None], weights, 0), source.values)
            for source in sources
        )
    return mixed.reshape(batch, width, heads * head_dim)  # type: ignore[union-attr]


def attend_cached(queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention over a cache, [B, W, H, E] → [B, W, H * E]: `keys` and `values` [B, K, S, E], `mask` [B, W, S]."""
    batch, width, heads, head_dim = queries.shape
    kv_heads, length = keys.shape[1:3]
    group = heads // kv_heads
    # All queries of a key-value head are rows of one matrix.
    rows = (queries * head_dim**-0.5).reshape(batch, width, kv_heads, group, head_dim).swapaxes(1, 2)
    rows = rows.reshape(batch, kv_heads, width * group, head_dim)
    logits = jnp.einsum("bkre,bkse->bkrs", rows, keys, preferred_element_type=at_least_float32(queries.dtype))
    logits = jnp.where(mask[:, None, :, None], logits.reshape(batch, kv_heads, width, group, length), -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(queries.dtype).reshape(batch, kv_heads, width * group, length)
    mixed = jnp.einsum("bkrs,bkse->bkre", weights, values)
    return mixed.reshape(batch, kv_heads, width, group * head_dim).swapaxes(1, 2).reshape(batch, width, -1)


def causal_mask(length: int) -> jax.Array:
    """[1, T, T], true where the key is not after the query."""
    return jnp.tril(jnp.ones((1, length, length), dtype=bool))


def write(buffer: jax.Array, new: jax.Array, starts: jax.Array, axis: int = 1) -> jax.Array:
    """`buffer` [B, S, …] with `new` [B, W, …] at the positions from `starts` [B] on; positions are the axis `axis`.

    One update per row rather than a scatter, which XLA runs element by element on a CPU; but for many rows the program
    would grow with them. The caller keeps starts + W ≤ S: an update that reaches over the end would be moved back, onto
    other positions.
    """
    # On a mesh rows may be divided, and an update of one row would gather them all.
    if buffer.shape[0] > MOST_ROWS_WRITTEN_ONE_BY_ONE or (buffer.shape[0] > 1 and on_mesh()):
        return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1))(buffer, new, starts)
    for row in range(buffer.shape[0]):
        origin = [jnp.zeros((), starts.dtype)] * buffer.ndim
        origin[0], origin[axis] = jnp.asarray(row, starts.dtype), starts[row]
        buffer = jax.lax.dynamic_update_slice(buffer, new[row : row + 1], origin)
    return buffer


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return normalise(x, self.eps) * self.scale[...]


def normalise(x: jax.Array, eps: float) -> jax.Array:
    """`x` divided by its root mean square over the last axis."""
    x32 = x.astype(at_least_float32(x.dtype))
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def _matrix(rngs: nnx.Rngs, fan_in: int, fan_out: int, scale: float = 1.0) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), (fan_in, fan_out)) * (scale * fan_in**-0.5))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and gated MLP, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, head_dim = config.d_model, config.head_dim
        # Residual branches start small, so that the stream's variance does not grow with depth.
        branch = (2 * config.num_layers) ** -0.5
        self.head_dim, self.dtype = head_dim, dtype
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.query = _matrix(rngs, width, config.num_heads * head_dim)
        self.key = _matrix(rngs, width, config.num_kv_heads * head_dim)
        self.value = _matrix(rngs, width, config.num_kv_heads * head_dim)
        self.output = _matrix(rngs, config.num_heads * head_dim, width, branch)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.gate = _matrix(rngs, width, config.d_ff)
        self.up = _matrix(rngs, width, config.d_ff)
        self.down = _matrix(rngs, config.d_ff, width, branch)

    def keys_and_values(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotated keys and plain values [B, T, K, E] of the layer inputs `x` [B, T, D], after the pre-attention
        norm."""
        keys, values = map(self._heads, products(self, self.attention_norm(x), "key", "value"))
        return rotate(keys, cos, sin), values

    def queries(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """Rotated queries [B, T, H, E] of the layer inputs `x` [B, T, D]."""
        return rotate(self._heads(products(self, self.attention_norm(x), "query")[0]), cos, sin)

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output [B, T, D] from its input and the attention's result [B, T, H * E]."""
        x = x + products(self, attended, "output")[0]
        gate, up = products(self, self.mlp_norm(x), "gate", "up")
        return x + products(self, jax.nn.silu(gate) * up, "down")[0]

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)


class Decoder(nnx.Module):
    """A causal language model; tokens [B, T] → logits [B, T, V] in float32.

    `dtype` is that of its products with weights; everything between them is float32.
    """

    def __init__(self, config: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.d_model)) * 0.02)
        self.layers = nnx.List([DecoderLayer(config, dtype=self.dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.unembedding = _matrix(rngs, config.d_model, config.vocab_size)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.states(tokens, self.config.num_layers)[-1])

    def embed(self, tokens: jax.Array, axes: tuple[str, ...] = ROWS) -> jax.Array:
        """Layer 1's input [B, T, D]; `axes` says what it is divided by on several devices."""
        table = self.embedding[...]
        if axes is SEQUENCES:
            # The batch is divided over the axis that divides widths, so widths are brought together before the lookup.
            table = constrain(table, "vocab", "whole")
        return constrain(table[tokens].astype(at_least_float32(self.dtype)), *axes)

    def logits(self, x: jax.Array) -> jax.Array:
        """Logits [B, T, V] in float32 from the last layer's output [B, T, D]."""
        x = self.norm(x)
        if self.config.tie_embeddings:
            return dot(x, self.embedding[...].T, self.dtype)
        return products(self, x, "unembedding")[0]

    def states(self, tokens: jax.Array, depth: int, *, remat: bool = False) -> list[jax.Array]:
        """The residual stream [B, T, D] after 0, 1, … `depth` layers: x^(0) … x^(depth) in the paper's notation."""
        run, states = self._layer(tokens.shape[1]), [self.embed(tokens, SEQUENCES)]
        for layer in list(self.layers)[:depth]:
            states.append((nnx.remat(run) if remat else run)(layer, states[-1]))
        return states

    def scanned_states(self, tokens: jax.Array, reads: Sequence[int], *, remat: bool = False) -> dict[int, jax.Array]:
        """`states`, but only those after as many layers as `reads` says, by one loop over the layers."""
        x, after = self.embed(tokens, SEQUENCES), [read for read in reads if read > 0]
        run = self._layer(tokens.shape[1])
        return {0: x, **scan_layers(run, self.layers, x, reads=after, remat=remat)}

    def _layer(self, length: int) -> Callable[[DecoderLayer, jax.Array], jax.Array]:
        """What a layer makes of its input [B, T, D], as training runs it."""
        cos, sin = self.rotary(jnp.arange(length)[None], length)
        mask = causal_mask(length)

        def run(layer: DecoderLayer, x: jax.Array) -> jax.Array:
            keys, values = layer.keys_and_values(x, cos, sin)
            attended = attend(layer.queries(x, cos, sin), [Source(keys, values, mask)])
            return constrain(layer.finish(x, attended), *SEQUENCES)

        return run

    def extend(self, tokens: jax.Array, starts: jax.Array, cache: KVCache) -> tuple[list[jax.Array], KVCache]:
        """Run `tokens` [B, W] at positions `starts` [B] … starts + W - 1 after what the cache holds before them.

        Returns the states [B, W, D] after 0 … L layers, and the cache with these positions written. Whatever it held at
        later positions is not read: rolling back is starting again from an earlier position.
        """
        positions = starts[:, None] + jnp.arange(tokens.shape[1])
        cos, sin = self.rotary(positions)
        mask = jnp.arange(cache.length) <= positions[..., None]
        states = [self.embed(tokens)]
        for index, layer in enumerate(self.layers):
            x = states[-1]
            cache = cache.extended(index, *layer.keys_and_values(x, cos, sin), starts)
            queries = layer.queries(x, cos, sin)
            attended = attend_cached(queries, cache.keys[index], cache.values[index], mask)
            states.append(constrain(layer.finish(x, attended), *ROWS))
        return states, cache

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """A cache of zeros for `batch` rows of `length` positions."""
        heads, dtype = self.config.num_kv_heads, at_least_float32(self.dtype)
        return KVCache.empty(self.config.num_layers, batch, heads, length, self.config.head_dim, dtype)

    def rotary(self, positions: jax.Array, length: int | None = None) -> tuple[jax.Array, jax.Array]:
        return rotary(positions, self.config.head_dim, self.config.rope_theta, length)
