"""Compiling ahead of time: a pair's training step, prefill and decoding, by the compiler of a TPU that is not here.

`python -m tandem.parallel.ahead` is a process of its own, because libtpu must not be loaded where JAX works on a CPU
(`start` gives it the environment that it needs). It reads a pickled `Request` and writes lines of JSON: for each
program one when it starts and one when it is compiled, or too large.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tandem.config import DecoderConfig, DType, Experiment, PrimaryMode, Recipe, Source
from tandem.model.bound import Bound
from tandem.pair import decoder_of, resolve_layer_map

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

# libtpu would look for a chip, for other hosts and for a metadata server; and it would hold a lock.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    # Thousands of lines a program, of which none is for a person.
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# As a PCI device says who made it.
GOOGLE = "0x1ae0"

# What the compiler has to give out of a v5e's memory, as its messages say: bytes.
LIMIT = 15.75 * 2**30

TRAINING = ("train",)
DECODING = ("prefill", "primary", "verify", "draft", "speed")


def hide_compiler() -> None:
    """Where libtpu is installed to compile with and there is nothing but CPUs, tell JAX so: it would try to start a TPU
    with it, and complain aloud."""
    vendors = (path.read_text() for path in Path("/sys/bus/pci/devices").glob("*/vendor"))
    others = find_spec("jax_plugins") is not None or GOOGLE in {vendor.strip() for vendor in vendors}
    if find_spec("libtpu") is not None and not others:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


@dataclass
class Request:
    """What is to be compiled: programs of `TRAINING` or `DECODING`."""

    experiment: Experiment
    programs: tuple[str, ...]


def start(request: Request, log: TextIO) -> subprocess.Popen[bytes]:
    """The compiling process, whose standard error goes to `log`."""
    command = [sys.executable, "-m", "tandem.parallel.ahead"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env={**os.environ, **ENVIRONMENT})
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(request))
    process.stdin.close()
    return process


def main() -> None:
    request: Request = pickle.load(sys.stdin.buffer)
    from jax.experimental import topologies

    from tandem.parallel.mesh import build_mesh

    platform = request.experiment.platform
    assert platform.topology is not None
    # A host has four chips unless it is said to have one.
    host = {"chips_per_host_bounds": [1, 1, 1]} if platform.chips == 1 else {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=platform.topology, **host)
    mesh = build_mesh(platform, topology.devices)
    compiler = topology.devices[0].client.platform_version.splitlines()[-1]
    for line in compile_programs(request.experiment, request.programs, mesh):
        print(json.dumps(line | {"compiler": compiler}), flush=True)


def compile_programs(experiment: Experiment, programs: tuple[str, ...], mesh: Mesh) -> Iterator[dict[str, Any]]:
    """For each program `{"started": name}` and then its row: `compile_seconds`, `memory`, counts and loops; or
    `too_large` with the compiler's figures."""
    import jax

    from tandem.parallel.counting import count
    from tandem.parallel.hlo import parse

    for name in programs:
        yield {"started": name}
        began = time.monotonic()
        program, arguments, options = (
            _training_step(experiment, mesh) if name == "train" else _decoding(experiment, mesh, name)
        )
        row: dict[str, Any] = {"name": name, "argument_bytes": _bytes_per_device(arguments)}
        try:
            # The mesh is set for the model's own constraints, and for nothing that would run on its devices.
            with jax.set_mesh(mesh):
                compiled = program.lower(*arguments, **options).compile()
        except jax.errors.JaxRuntimeError as error:
            problem = too_large(str(error), row["argument_bytes"])
            if problem is None:
                raise
            yield row | {"too_large": problem, "compile_seconds": time.monotonic() - began}
            continue
        row["compile_seconds"] = time.monotonic() - began
        row["memory"] = _memory(compiled.memory_analysis())
        if row["memory"]["total"] > LIMIT:
            # The compiler has let pass what by its own figures does not fit: nothing is promised of it.
            yield row | {"too_large": {"used": float(row["memory"]["total"]), "limit": LIMIT}}
            continue
        counts, loops = count(parse(compiled.as_text()))
        row["loops"] = [{"name": loop.name, "trips": loop.trips} for loop in loops]
        unknown = [loop for loop in loops if loop.trips is None]
        # The loop over blocks ends by what is decoded: its figures are those of one block.
        row["unit"] = "block" if unknown else "run"
        yield row | asdict(unknown[0].trip if unknown else counts)


def too_large(message: str, arguments: int) -> dict[str, float] | None:
    """`used` and `limit` in bytes from the compiler's message that a program does not fit; None for other messages.

    The compiler has two: of all that a program takes, and of its temporaries where they alone are too much, to which
    the `arguments` (bytes) come.
    """
    size = r"([\d.]+)([KMGT]?)"
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if found := re.search(rf"Used {size} of {size} hbm", message):
        held = 0
    elif found := re.search(rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", message):
        held = arguments
    else:
        return None
    return {"used": float(found[1]) * unit[found[2]] + held, "limit": float(found[3]) * unit[found[4]]}


def _memory(analysis: Any) -> dict[str, int]:
    """Bytes of a device's memory; outputs that take the place of arguments are `aliased`."""
    names = {"arguments": "argument", "outputs": "output", "temporaries": "temp", "aliased": "alias"}
    names["code"] = "generated_code"
    memory = {name: getattr(analysis, f"{value}_size_in_bytes") for name, value in names.items()}
    return memory | {"total": sum(memory.values()) - 2 * memory["aliased"]}


def _bytes_per_device(arguments: Any) -> int:
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments)
    )


# --- the programs -----------------------------------------------------------------------------------------------------

Program = tuple[Any, tuple[Any, ...], dict[str, Any]]  # a jitted function, shapes with shardings, static arguments


def products_dtype(dtype: DType) -> str:
    """The type to multiply in on a TPU; `auto` is bfloat16, which it has matrix units for."""
    return "bfloat16" if dtype is DType.auto else dtype.value


def _shapes(make: Callable[[], Any]) -> Bound:
    """A model with the shapes of its weights; nothing is computed."""
    from flax import nnx

    return Bound(*nnx.split(nnx.eval_shape(make)))


def _decoder(config: DecoderConfig, dtype: str, untied: bool = False) -> Bound:
    """A decoder that is not trained: its matrices are in `dtype`, and decoding holds the output matrix apart."""
    from flax import nnx

    from tandem.model.decoder import Decoder
    from tandem.model.layout import cast_matrices, untie

    def make() -> Any:
        graph, weights = nnx.split(Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
        model = Bound(graph, cast_matrices(weights, dtype))
        return (untie(model) if untied else model).merge()

    return _shapes(make)


def _tandem(experiment: Experiment, dtype: str, trained: bool = False) -> Bound:
    """A tandem that multiplies in `dtype`; one that is `trained` has float32 weights."""
    from flax import nnx

    from tandem.model.layout import cast_matrices
    from tandem.model.tandem import Tandem

    pair, layer_map = experiment.model, resolve_layer_map(experiment)
    primary, secondary = decoder_of(experiment, pair.primary), decoder_of(experiment, pair.secondary)

    def make() -> Any:
        model = Tandem(primary, secondary, layer_map, dtype=dtype, rngs=nnx.Rngs(0))
        graph, weights = nnx.split(model)
        return nnx.merge(graph, weights if trained else cast_matrices(weights, dtype))

    return _shapes(make)


def _with(shapes: Any, shardings: Any) -> Any:
    import jax

    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
    )


def _training_step(experiment: Experiment, mesh: Mesh) -> Program:
    """The step that the recipe ends with: of stage 2, of stage 1, or of the primary's pretraining."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from tandem.model.copying import SHARED_NAMES
    from tandem.parallel.sharding import batch_sharding, weight_shardings
    from tandem.training.loop import make_update
    from tandem.training.objective import Vocabulary, decoder_loss, held_part, holding, learning_part, tandem_loss

    train, decoder = experiment.train, decoder_of(experiment, experiment.model.primary)
    joint = train.primary is not PrimaryMode.frozen
    optimizer = train
    if train.recipe is Recipe.pretrain:
        optimizer = experiment.scale.pretrain[experiment.model.primary.name]
        graph, trained = _decoder(decoder, "float32")
        fixed, loss = None, decoder_loss(graph, remat=optimizer.remat, scan_layers=optimizer.scan_layers)
    else:
        primary, fixed = _decoder(decoder, "float32" if joint else products_dtype(train.primary_dtype))
        graph, trained = _tandem(experiment, products_dtype(train.dtype), trained=True)
        counted, size = train.vocabulary, decoder.vocab_size
        loss = tandem_loss(
            graph,
            primary,
            mode=train.primary,
            gammas=train.gamma,
            distil_weight=train.distil_weight if train.recipe is Recipe.distil else None,
            temperature=train.temperature,
            divergence=train.divergence,
            position_decay=train.position_decay,
            # Which tokens they are is the same to the compiler.
            vocabulary=Vocabulary(np.arange(counted), size) if counted and counted < size else None,
            remat=train.remat,
            scan_layers=train.scan_layers,
        )
        if joint:
            depth = max(resolve_layer_map(experiment))
            learning, fixed = learning_part(train.primary, depth, fixed)
            trained = {"tandem": trained, "primary": learning}
        if experiment.model.secondary.source is Source.from_primary:
            trained, held = held_part(trained, [f"secondary.{name}" for name in SHARED_NAMES])
            loss, fixed = holding(loss), {"held": held, "rest": fixed}
    rule, update = make_update(loss, optimizer, experiment.seed)
    state = jax.eval_shape(rule.init, trained)
    tokens = (optimizer.batch_size, optimizer.seq_len + 1)
    arguments = (
        _with(trained, weight_shardings(mesh, trained)),
        _with(state, weight_shardings(mesh, state)),
        fixed if fixed is None else _with(fixed, weight_shardings(mesh, fixed)),
        jax.ShapeDtypeStruct(tokens, jnp.int32, sharding=batch_sharding(mesh, tokens)),
        _whole(mesh, (), jnp.int32),
    )
    return update, arguments, {}


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _decoding(experiment: Experiment, mesh: Mesh, name: str) -> Program:
    """`prefill` of the pair; `speed`, its decoding loop with the tandem; `primary` and `verify`, autoregressive loops
    by passes of width 1 and γ + 1; `draft`, the drafts of one block and what the tandem learns from its verification.
    """
    import jax
    import jax.numpy as jnp

    from tandem.decoding.drafters.tandem import TandemDrafter
    from tandem.decoding.engine import DecodingState, Engine, EngineWeights
    from tandem.measure.timing import bucket, sampling_of
    from tandem.parallel.sharding import sharding, state_shardings, weight_shardings

    decode, config = experiment.decode, decoder_of(experiment, experiment.model.primary)
    dtype = products_dtype(decode.dtype)
    options: dict[str, Any] = {"sampling": sampling_of(decode), "verification": decode.verification}

    def placed(model: Bound) -> Bound:
        return model._replace(weights=_with(model.weights, weight_shardings(mesh, model.weights)))

    primary, drafting = placed(_decoder(config, dtype, untied=True)), None
    if name in ("primary", "verify"):
        engine = Engine(primary.definition, width=1 if name == "primary" else experiment.gamma + 1, **options)
    else:
        drafting = placed(_tandem(experiment, dtype))
        engine = Engine(primary.definition, TandemDrafter(drafting.definition), gamma=experiment.gamma, **options)
    weights = EngineWeights.of(primary, drafting)
    rows = decode.batch_size * decode.num_samples

    def of_rows(batch: int, *shape: int, dtype: Any = jnp.int32) -> Any:
        axes = ("rows", *("whole" for _ in shape))
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding(mesh, axes, (batch, *shape)))

    def prompts(batch: int) -> tuple[Any, ...]:
        return weights, of_rows(batch, bucket(decode.prompt_tokens)), of_rows(batch)

    new = decode.max_new_tokens
    if name == "prefill":
        return engine.prefill, prompts(decode.batch_size), {"max_new_tokens": new}
    state: DecodingState = jax.eval_shape(lambda *given: engine._prefill(*given, max_new_tokens=new), *prompts(rows))
    state = _with(state, state_shardings(mesh, state))
    if name != "draft":
        return engine.decode, (weights, state, of_rows(rows)), {}
    drafter = engine.drafter
    assert drafter is not None

    def draft(weights: EngineWeights, state: DecodingState, read: jax.Array, states: list[jax.Array]) -> Any:
        block = engine.draft_block(weights, state, jnp.ones(rows, bool))
        return block.tokens, drafter.update(weights.drafter, block.drafter, read, states, state.position)

    read = of_rows(rows, engine.width)
    stream = of_rows(rows, engine.width, config.d_model, dtype=jnp.float32)
    without_primary = weights._replace(primary=None)  # which is not read here, and is none of the memory that it takes
    return jax.jit(draft), (without_primary, state, read, [stream] * (config.num_layers + 1)), {}


if __name__ == "__main__":
    main()
