"""Weights on disk: safetensors files with dotted names, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tandem import foreign
from tandem.config import DecoderConfig
from tandem.decoding.drafters import Head, head_of
from tandem.errors import EnvironmentFailure
from tandem.model.bound import Bound
from tandem.model.copying import SHARED_NAMES
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.importing import load_checkpoint
from tandem.model.names import path_name
from tandem.model.parameters import parameter_count
from tandem.model.references import REFERENCE, SHARED, Reference, Shared
from tandem.model.tandem import Tandem
from tandem.parallel.hosts import hosts
from tandem.parallel.sharding import fetch, place

CHECKSUM = "sha256"  # what a file's metadata calls its own


def save(
    path: Path,
    tree: Any,
    metadata: dict[str, Any] | None = None,
    dtype: Any = None,
    checksum: bool = False,
    shared: Shared | None = None,
    kept_as: Path | None = None,
) -> None:
    """Write the arrays of `tree` (cast to `dtype` where they are floats and it is given) and JSON `metadata`.

    What is `shared` with an open checkpoint is not written; the file says where it is.

    Whatever mesh they lie on, the file holds them whole. Of several hosts, which all call this, the first writes.
    With a `checksum` whoever loads the file notices every change; what a step leaves its store lists anyway.
    The file that was there is kept under the name `kept_as`, where one is given.
    Raises EnvironmentFailure where the disk is full, and for numbers that are not finite: no model has such weights.
    """
    arrays = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if shared is not None and path_name(key) in shared.names:
            continue
        array = fetch(leaf)
        if not hosts().first:
            continue
        array = np.asarray(array, order="C")
        if dtype is not None and np.issubdtype(array.dtype, np.floating):
            with np.errstate(over="ignore"):  # said where it is refused
                array = array.astype(dtype)
        arrays[path_name(key)] = array
    about = {**(metadata or {}), **({SHARED: shared.stored} if shared else {})}
    texts = {name: json.dumps(value) for name, value in about.items()}
    texts |= {CHECKSUM: json.dumps(_checksum(arrays, texts))} if checksum else {}
    hosts().agree(lambda: _write(path, arrays, texts, kept_as))


def _write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str], kept_as: Path | None) -> None:
    if wrong := _not_finite(arrays):
        raise EnvironmentFailure(f"{path}: not written, since {wrong}; if it was trained, lower the learning rate")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(arrays, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a machine that loses power may keep the name and lose the content
        if kept_as is not None and path.exists():
            os.replace(path, kept_as)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full disk shows as the second
        raise EnvironmentFailure(f"{path}: could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """The tree of `template` (arrays or their shapes) with the values of `path`, cast to the template's types, on the
    mesh that is set; and the metadata.

    Raises EnvironmentFailure if the file is missing, damaged, or holds other names or shapes, or numbers that are not
    finite.
    """
    values, about = read(path, template)
    return place(values), about


def read(
    path: Path,
    template: Any,
    checksum: bool = False,
    accept: Callable[[dict[str, Any]], None] = lambda metadata: None,
) -> tuple[Any, dict[str, Any]]:
    """What `load` loads, in this process's memory alone; raises as it does.

    With a `checksum` a file without one is damaged. `accept` may refuse its metadata before weights are compared.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    try:
        with safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
            about = {name: foreign.json_value(text) for name, text in texts.items()}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise EnvironmentFailure(f"{path}: not a readable checkpoint: {error}") from error
    written, _ = about.pop(CHECKSUM, None), texts.pop(CHECKSUM, None)
    if checksum and written is None:
        raise EnvironmentFailure(f"{path}: not a readable checkpoint: it has no checksum")
    if written is not None and written != _checksum(stored, texts):
        raise EnvironmentFailure(f"{path}: not a readable checkpoint: it is not what was written")
    accept(about)
    if SHARED in about:
        stored |= Shared.from_stored(about[SHARED], path).read()
    expected = {path_name(key): leaf for key, leaf in leaves}
    problems = [f"lacks {name}" for name in expected if name not in stored]
    problems += [f"has {name}, which this model does not" for name in stored if name not in expected]
    problems += [
        f"{name} is {stored[name].shape}, this model's is {leaf.shape}"
        for name, leaf in expected.items()
        if name in stored and stored[name].shape != leaf.shape
    ]
    if problems:
        raise EnvironmentFailure(f"{path}: not a checkpoint of this model: {'; '.join(problems[:3])}")
    if wrong := _not_finite(stored):
        remedy = "remove the folder of the step that made it, and the same command makes it again"
        raise EnvironmentFailure(f"{path}: damaged, since {wrong}; {remedy}")
    values = [stored[path_name(key)].astype(leaf.dtype) for key, leaf in leaves]
    return jax.tree_util.tree_unflatten(treedef, values), about


def _checksum(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        total.update(f"{name}\0{arrays[name].dtype}\0{arrays[name].shape}\0".encode())
        total.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data if arrays[name].size else b"")
    return total.hexdigest()


def _not_finite(arrays: dict[str, np.ndarray]) -> str:
    """Which array holds nan or an infinity, in words; empty if none does."""
    for name, array in arrays.items():
        # Of types that NumPy does not know itself (bfloat16) too; only floats can be otherwise.
        if not np.isfinite(array).all():
            return f"{name} holds numbers that are not finite"
    return ""


def save_decoder(
    path: Path,
    config: DecoderConfig,
    weights: Any,
    dtype: Any = None,
    shared: Shared | None = None,
    **about: Any,
) -> None:
    """Write a decoder's weights with its sizes, and whatever else is known `about` it."""
    save(path, weights, {"decoder": config.described, **about}, dtype, shared=shared)


def load_decoder(path: Path, dtype: Any = jnp.float32) -> Bound[nnx.GraphDef[Decoder]]:
    """A decoder written by `save_decoder` or `save_reference`, that multiplies in `dtype`; weights in float32, or as
    the reference says."""
    if stored := metadata(path).get(REFERENCE):
        reference = Reference.from_stored(stored, path)
        kind = jnp.dtype(reference.dtype)
        imported = load_checkpoint(reference.whole(), dtype, kind, reference.vocab_size)
        return Bound(imported.graph, imported.weights)
    config = config_of(path, "decoder")
    graph, template = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0))))
    return Bound(graph, load(path, template)[0])


def save_reference(path: Path, config: DecoderConfig, reference: Reference) -> None:
    """Write that a decoder's weights are those of an open checkpoint, which stays where it is."""
    save(path, {}, {"decoder": config.described, REFERENCE: reference.stored})


def save_tandem(
    path: Path,
    primary: DecoderConfig,
    secondary: DecoderConfig,
    layer_map: Sequence[int],
    weights: Any,
    dtype: Any = None,
    shared: Shared | None = None,
) -> None:
    """Write a tandem's weights (secondary and projections) with what they were built for."""
    sizes = {"primary": primary.described, "secondary": secondary.described}
    about = {**sizes, "layer_map": list(layer_map)}
    save(path, weights, about, dtype, shared=shared)


def load_tandem(path: Path, dtype: Any = jnp.float32) -> Bound[nnx.GraphDef[Tandem]]:
    """A tandem written by `save_tandem`, that multiplies in `dtype`; weights in float32."""
    primary, secondary = config_of(path, "primary"), config_of(path, "secondary")
    layer_map = _stored(path, "layer_map")

    def make() -> Tandem:
        return Tandem(primary, secondary, layer_map, dtype=dtype, rngs=nnx.Rngs(0))

    graph, template = nnx.split(nnx.eval_shape(make))
    return Bound(graph, load(path, template)[0])


def save_head(path: Path, config: Head, primary: DecoderConfig, weights: Any, dtype: Any = None) -> None:
    """Write the own weights of a head on a frozen primary, with what they were built for."""
    save(path, weights, {"head": config.described, "primary": primary.described}, dtype)


def load_head(path: Path, dtype: Any = jnp.float32) -> Bound[nnx.GraphDef[HeadModule]]:
    """A head written by `save_head`, that multiplies in `dtype`; weights in float32.

    Raises EnvironmentFailure if no drafter that registers is of that name and sizes.
    """
    primary, stored = config_of(path, "primary"), _stored(path, "head")
    try:
        config = head_of(stored)
    except (TypeError, KeyError, ValueError, EnvironmentFailure) as error:
        raise EnvironmentFailure(f"{path}: its head is not one that this version knows: {error}") from error
    graph, template = nnx.split(nnx.eval_shape(lambda: HeadModule(config, primary, dtype=dtype, rngs=nnx.Rngs(0))))
    return Bound(graph, load(path, template)[0])


def shared_embedding(path: Path) -> Shared | None:
    """What a decoder that is made of this one's layers need not hold: its embedding and output matrix, where they are
    those of an open checkpoint."""
    about = metadata(path)
    if REFERENCE not in about:
        return None
    tied = config_of(path, "decoder").tie_embeddings
    names = SHARED_NAMES[:1] if tied else SHARED_NAMES
    return Shared(Reference.from_stored(about[REFERENCE], path), dict(zip(names, names, strict=True)))


def shared_of(path: Path) -> Shared | None:
    """What a file's model shares with an open checkpoint, and the file does not hold."""
    about = metadata(path)
    return Shared.from_stored(about[SHARED], path) if SHARED in about else None


def metadata(path: Path) -> dict[str, Any]:
    """What is written beside the weights of a file. Raises EnvironmentFailure if it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = {name: foreign.json_value(value) for name, value in (file.metadata() or {}).items()}
            about.pop(CHECKSUM, None)
            return about
    except (OSError, SafetensorError, ValueError) as error:
        raise EnvironmentFailure(f"{path}: not a readable checkpoint: {error}") from error


def parameters(path: Path) -> int:
    """Number of weights in a file, or of those that it refers to. What it shares is not counted."""
    if REFERENCE in metadata(path):
        return parameter_count(config_of(path, "decoder"))
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _stored(path: Path, name: str) -> Any:
    try:
        return metadata(path)[name]
    except KeyError:
        raise EnvironmentFailure(f"{path}: says nothing of its {name}; it was not written as such a model") from None


def config_of(path: Path, name: str) -> DecoderConfig:
    """The sizes of the decoder that a file calls `name` (decoder, primary or secondary).

    Raises EnvironmentFailure if it says nothing of them, or something else than this version knows.
    """
    try:
        return DecoderConfig.from_described(_stored(path, name))
    except (TypeError, ValueError, AttributeError) as error:
        raise EnvironmentFailure(f"{path}: its {name} has other sizes than this version knows: {error}") from error
