"""The update rule: AdamW, or Muon for the matrices inside the layers, with warm-up, cosine decay and clipping."""

from __future__ import annotations

from typing import Any

import jax
import optax

from tandem.config import Optimizer, OptimizerConfig
from tandem.model.names import path_name
from tandem.model.parameters import declare

declare({"ns_coeffs": ()})  # Muon's constants, in its state


def learning_rate(config: OptimizerConfig, factor: float = 1.0) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine to `final_rate` of it at the last step."""
    peak = config.learning_rate * factor
    warmup = min(config.warmup_steps, config.steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / max(1, warmup),
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
        end_value=peak * config.final_rate,
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Optax's own optimizers behind one clip; FF_Tandem has a rate of its own, `projection_rate` times the others'.

    Muon (as in optax, arXiv 2502.16982 for the scale 0.2 that makes one rate right for both parts) takes the layers'
    matrices; embeddings, norms and projections stay with Adam, there with Nesterov momentum. Weight decay is on
    matrices only, under Muon on those that it takes.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.partition(
            {"rest": _update(config, 1.0), "projection": _update(config, config.projection_rate)},
            lambda weights: jax.tree_util.tree_map_with_path(
                lambda path, _: "projection" if "projections." in path_name(path) else "rest", weights
            ),
        ),
    )


def _update(config: OptimizerConfig, factor: float) -> optax.GradientTransformation:
    schedule = learning_rate(config, factor)
    if config.optimizer is Optimizer.adamw:
        return optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay, mask=_matrices)
    return optax.contrib.muon(
        schedule,
        adam_b2=0.95,
        weight_decay=config.weight_decay,
        weight_decay_mask=_matrices,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_muon_axes,
    )


def _matrices(weights: Any) -> Any:
    return jax.tree.map(lambda leaf: getattr(leaf, "ndim", 0) == 2, weights)


def _muon_axes(weights: Any) -> Any:
    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        inside_layer = "layers." in path_name(path) and getattr(leaf, "ndim", 0) == 2
        return optax.contrib.MuonDimensionNumbers(0, 1) if inside_layer else None

    return jax.tree_util.tree_map_with_path(axes, weights)
