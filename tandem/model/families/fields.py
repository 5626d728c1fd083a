"""Fields of a checkpoint's configuration, read with what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from sys import float_info
from typing import Any

from tandem.architecture import LARGEST, Activation, DecoderConfig, RopeScaling
from tandem.model.families import Unsupported

ACTIVATIONS = {
    "silu": Activation.silu,
    "swish": Activation.silu,
    "gelu": Activation.gelu,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
    "gelu_new": Activation.gelu_tanh,
    "gelu_fast": Activation.gelu_tanh,
}
# Ours first: what is written.
HUGGINGFACE_ACTIVATIONS = {Activation.silu: "silu", Activation.gelu: "gelu", Activation.gelu_tanh: "gelu_pytorch_tanh"}


class Fields:
    """A configuration that notes what it cannot be, and says it all at once."""

    def __init__(self, said: Mapping[str, Any]):
        self.said, self.problems = said, list[str]()

    def get(self, name: str, default: Any = None) -> Any:
        value = self.said.get(name)
        return default if value is None else value

    def number(self, name: str, default: Any = None, kind: type = int) -> Any:
        """A number above 0. Raises Unsupported at once where a model cannot be thought of without it."""
        value, most = self.get(name, default), LARGEST if kind is int else float_info.max
        if type(value) not in (int, float) or not 0 < value <= most or (kind is int and value != int(value)):
            rule = f"a whole number from 1 to {LARGEST}" if kind is int else "a number above 0"
            raise Unsupported([*self.problems, f"{name}={value!r:.60} must be {rule}"])
        return kind(value)

    def only(self, name: str, allowed: Any, default: Any = None) -> None:
        """Refuses any other value than one (or, of a tuple, some)."""
        value, allowed = self.get(name, default), allowed if isinstance(allowed, tuple) else (allowed,)
        if value not in allowed and value is not None:
            self.problems.append(f"{name}={value!r:.200} is not supported, only {' or '.join(map(repr, allowed))}")

    def activation(self, name: str, default: str) -> Activation:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            self.problems.append(f"{name}={value!r:.200} is not supported, only {', '.join(ACTIVATIONS)}")
            return Activation.silu
        return ACTIVATIONS[value]

    def rope(self, theta: float = 10000.0, kind: str = "full_attention") -> dict[str, Any]:
        """The rotary positions: rope_theta and rope_scaling, or the rope_parameters of later files, there for all
        layers or for each kind of them."""
        given = self.get("rope_parameters")
        if given and kind in given:
            given = given[kind]
        scaling = dict(given or self.get("rope_scaling") or {})
        found: dict[str, Any] = {"rope_theta": float(scaling.get("rope_theta", self.get("rope_theta", theta)))}
        name = scaling.get("rope_type", scaling.get("type", "default"))
        fraction = scaling.get("partial_rotary_factor", self.get("partial_rotary_factor", self.get("rotary_pct", 1.0)))
        if fraction != 1.0:
            found["rotary_fraction"] = float(fraction)
        if name in ("default", "none"):
            return found
        if name not in ("linear", "llama3", "yarn"):
            self.problems.append(f"rope_scaling.type={name!r:.200} is not supported, only linear, llama3 and yarn")
            return found
        found |= {"rope_scaling": RopeScaling(name), "rope_factor": float(scaling.get("factor", 1.0))}
        original = scaling.get("original_max_position_embeddings", self.get("max_position_embeddings"))
        if name != "linear" and original:
            found["rope_original_length"] = int(original)
        if name == "llama3":
            found["rope_low_freq_factor"] = float(scaling.get("low_freq_factor", 1.0))
            found["rope_high_freq_factor"] = float(scaling.get("high_freq_factor", 4.0))
        if name == "yarn":
            found["rope_beta_fast"] = float(scaling.get("beta_fast") or 32.0)
            found["rope_beta_slow"] = float(scaling.get("beta_slow") or 1.0)
            found["rope_attention_factor"] = scaling.get("attention_factor")
            for field in ("mscale", "mscale_all_dim", "truncate"):
                if scaling.get(field) not in (None, True):
                    self.problems.append(f"rope_scaling.{field}={scaling[field]!r:.200} is not supported with yarn")
        return found

    def layer_types(self, layers: int, global_every: int) -> None:
        """Refuses layers with and without a window in another order than the family's."""
        given = self.get("layer_types")
        if given is None:
            return
        expected = DecoderConfig(num_layers=layers, window=1, global_every=global_every)
        names = {None: "full_attention", 1: "sliding_attention"}
        if len(given) != layers or any(names[expected.window_of(at)] != kind for at, kind in enumerate(given)):
            self.problems.append(f"layer_types={given!r:.200} is not supported: every {global_every}th must see all")

    def done(self, **features: Any) -> DecoderConfig:
        """The configuration. Raises Unsupported with all that was noted."""
        if features["d_model"] % features["num_heads"] and features.get("head_size") is None:
            self.problems.append(f"{features['num_heads']} heads do not divide a width of {features['d_model']}")
        if features["num_heads"] % features["num_kv_heads"]:
            self.problems.append(f"{features['num_kv_heads']} key-value heads do not divide {features['num_heads']}")
        if self.problems:
            raise Unsupported(self.problems)
        if features.get("head_size") == features["d_model"] / features["num_heads"]:
            features["head_size"] = None
        made = DecoderConfig(**features)
        if problems := made.problems:
            raise Unsupported(problems)
        if made.head_dim < 1:
            raise Unsupported([f"heads of {made.head_dim} dimensions are none"])
        return made


def written_rope(config: DecoderConfig) -> dict[str, Any]:
    """rope_theta and rope_scaling as config.json has them."""
    said: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling is RopeScaling.none:
        return said
    scaling: dict[str, Any] = {"rope_type": config.rope_scaling.value, "factor": config.rope_factor}
    if config.rope_scaling is not RopeScaling.linear:
        scaling["original_max_position_embeddings"] = config.rope_original_length
    if config.rope_scaling is RopeScaling.llama3:
        scaling |= {"low_freq_factor": config.rope_low_freq_factor, "high_freq_factor": config.rope_high_freq_factor}
    if config.rope_scaling is RopeScaling.yarn:
        scaling |= {"beta_fast": config.rope_beta_fast, "beta_slow": config.rope_beta_slow}
        if config.rope_attention_factor is not None:
            scaling["attention_factor"] = config.rope_attention_factor
    return said | {"rope_scaling": scaling}
