"""Checks of the pair of models, a part of `tandem/validate.py`."""

from __future__ import annotations

from tandem.checks import Checks, nearest
from tandem.config import (
    DecoderConfig,
    Experiment,
    PairConfig,
    PrimaryMode,
    ProjectionInit,
    ScaleConfig,
    SideConfig,
    Source,
)
from tandem.model.families import family_names
from tandem.model.formats.hub import is_name, is_revision, may_be_name
from tandem.pair import CHECKPOINTS, STAND_INS, decoder_of, to_fetch


def check_pair(experiment: Experiment, check: Checks) -> dict[str, DecoderConfig]:
    """The decoders of the pair by their roles; none where a side is no model, or is yet to be fetched."""
    pair, scale = experiment.model, experiment.scale
    roles = {"primary": pair.primary, "secondary": pair.secondary}
    if pair.middle is not None:
        roles["middle"] = pair.middle
    good = [role for role, side in roles.items() if _side(f"model.{role}", side, role, scale, check)]
    for role in ("secondary", "middle"):
        if role in roles and roles[role].name == pair.primary.name:
            check.wrong(f"model.{role}.name", roles[role].name, "must differ from model.primary.name")
    if pair.middle is not None and pair.middle.name == pair.secondary.name:
        check.wrong("model.middle.name", pair.middle.name, "must differ from model.secondary.name")
    if len(good) < len(roles) or (pair.download and to_fetch(pair)):
        return {}
    decoders = {role: decoder_of(experiment, side) for role, side in roles.items()}
    if len({decoder.vocab_size for decoder in decoders.values()}) > 1:
        named = ", ".join(f"{roles[role].name} has {decoder.vocab_size}" for role, decoder in decoders.items())
        check.problems.append(f"the models of a pair must share one vocabulary, but {named} (vocab_size)")
    primary, secondary = decoders["primary"], decoders["secondary"]
    _copied_layers(pair.secondary, primary, check)
    if pair.layer_map is not None:
        _layer_map(pair, primary, secondary, check)
    shares = pair.secondary.source is Source.from_primary
    if shares and experiment.train.primary is not PrimaryMode.frozen:
        rule = f"cannot be trained with {pair.secondary.name}, which shares its embedding (model.secondary.source)"
        check.wrong("train.primary", experiment.train.primary.value, rule)
    if experiment.train.projection_init is ProjectionInit.identity and primary.d_model != secondary.d_model:
        widths = f"but {pair.primary.name} has {primary.d_model} and {pair.secondary.name} {secondary.d_model}"
        check.wrong("train.projection_init", "identity", f"needs models of one width (d_model), {widths}")
    return decoders


def _side(key: str, side: SideConfig, role: str, scale: ScaleConfig, check: Checks) -> bool:
    """Whether the side names a model."""
    before = len(check.problems)
    if not side.name or set(side.name) & set("/\\\0 "):
        check.wrong(f"{key}.name", side.name, "must be a name for the tables, without blanks and slashes")
    stand_in, checkpoint = side.source in STAND_INS, side.source in CHECKPOINTS
    if stand_in and side.name not in scale.models:
        check.wrong(f"{key}.name", side.name, f"is not a model of scale={scale.name}{nearest(side.name, scale.models)}")
    elif stand_in and side.name not in scale.pretrain:
        check.wrong(f"{key}.name", side.name, f"has no scale.pretrain.{side.name} to be trained by")
    if checkpoint and side.path is None and side.decoder is None:
        what = "a GGUF file" if side.source is Source.gguf else "a directory with config.json and safetensors files"
        if side.source is Source.llama2c:
            what = "a .bin file of llama2.c"
        check.problems.append(f"{key}.path must name {what}, as {key}.source={side.source.value} says")
    for name in ("path", "revision", "tokenizer", "decoder"):
        if not checkpoint and getattr(side, name) is not None:
            rule = f"is not read by {key}.source={side.source.value}; it is by {', '.join(CHECKPOINTS)}"
            check.wrong(f"{key}.{name}", getattr(side, name) if name != "decoder" else "…", rule)
    _on_hub(key, side, check)
    if side.decoder is not None:
        check_decoder(f"{key}.decoder", side.decoder, check)
    if side.source is Source.from_primary:
        if role == "primary":
            check.wrong(f"{key}.source", side.source.value, "is for the other models of the pair")
        if not side.layers:
            check.wrong(f"{key}.layers", side.layers, "must list which layers of the primary to take, from 0")
    elif side.layers is not None:
        check.wrong(f"{key}.layers", side.layers, f"is not read by {key}.source={side.source.value}")
    return len(check.problems) == before


def _on_hub(key: str, side: SideConfig, check: Checks) -> None:
    """A path that is the name of a model on a hub, and the revision of one."""
    if side.source not in CHECKPOINTS or side.path is None:
        return
    named = side.source is Source.huggingface and may_be_name(side.path)
    if named and not is_name(side.path):
        rule = "is no directory here, and no name on a hub, which is ORG/NAME of letters, digits, '-', '_' and '.'"
        check.wrong(f"{key}.path", side.path, rule)
    if side.revision is not None and not named:
        rule = f"is of a name on a hub, and {key}.path={side.path} is none with {key}.source={side.source.value}"
        check.wrong(f"{key}.revision", side.revision, rule)
    elif side.revision is not None and not is_revision(side.revision):
        check.wrong(f"{key}.revision", side.revision, "must be a branch, a tag or a commit of a model on a hub")


def _copied_layers(side: SideConfig, primary: DecoderConfig, check: Checks) -> None:
    if side.source is not Source.from_primary or side.layers is None:
        return
    for position, layer in enumerate(side.layers):
        if not 0 <= layer < primary.num_layers:
            rule = f"must be from 0 to {primary.num_layers - 1}, a layer of the primary"
            check.wrong(f"model.secondary.layers[{position}]", layer, rule)
    if primary.window is not None and primary.global_every:
        rule = "cannot be taken from a primary whose layers have windows of two kinds"
        check.wrong("model.secondary.layers", side.layers, rule)


def _layer_map(pair: PairConfig, primary: DecoderConfig, secondary: DecoderConfig, check: Checks) -> None:
    layer_map, count = pair.layer_map or [], secondary.num_layers
    if not layer_map or len(layer_map) % count:
        rule = f"has {len(layer_map)} entries and must have {count}, one per secondary layer, or a multiple of that"
        check.wrong("model.layer_map", layer_map, rule)
    # A layer of the primary's own may read what it read there, the embedding too.
    first = 0 if pair.secondary.source is Source.from_primary else 1
    for position, layer in enumerate(layer_map):
        least = first if position < count else 0
        if not least <= layer <= primary.num_layers:
            rule = f"must be from {least} to {primary.num_layers}, a number of primary layers"
            check.wrong(f"model.layer_map[{position}]", layer, rule)


def check_decoder(key: str, decoder: DecoderConfig, check: Checks) -> None:
    """A decoder's sizes and features, by themselves and together."""
    sizes = ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_ff", "vocab_size")
    # A list, not a generator: every size is to be checked.
    if all([check.at_least(f"{key}.{size}", getattr(decoder, size), 1) for size in sizes]):
        which = "num_heads" if decoder.head_size is None else "head_size"
        if decoder.head_size is None and decoder.d_model % decoder.num_heads:
            check.wrong(f"{key}.num_heads", decoder.num_heads, f"must divide d_model={decoder.d_model}")
        elif decoder.head_dim < 2 or decoder.head_dim % 2:
            rule = f"makes heads of {decoder.head_dim} dimensions, and rotary positions need an even number"
            check.wrong(f"{key}.{which}", getattr(decoder, which), rule)
        elif not 0 < decoder.rotary_fraction <= 1 or decoder.rotary_dim < 2 or decoder.rotary_dim % 2:
            rule = f"must turn an even number of a head's {decoder.head_dim} dimensions, two or more"
            check.wrong(f"{key}.rotary_fraction", decoder.rotary_fraction, rule)
        if decoder.num_heads % decoder.num_kv_heads:
            check.wrong(f"{key}.num_kv_heads", decoder.num_kv_heads, f"must divide num_heads={decoder.num_heads}")
    check.positive(f"{key}.rope_theta", decoder.rope_theta)
    check.positive(f"{key}.norm_eps", decoder.norm_eps)
    check.at_least(f"{key}.global_every", decoder.global_every, 0)
    for name in ("window", "context_length"):
        if getattr(decoder, name) is not None:
            check.at_least(f"{key}.{name}", getattr(decoder, name), 1)
    for name in ("rope_factor", "rope_original_length", "embedding_scale"):
        check.positive(f"{key}.{name}", getattr(decoder, name))
    for name in ("local_rope_theta", "query_scale", "attention_softcap", "logits_softcap", "rope_attention_factor"):
        if getattr(decoder, name) is not None:
            check.positive(f"{key}.{name}", getattr(decoder, name))
    if decoder.rope_low_freq_factor >= decoder.rope_high_freq_factor:
        rule = f"must be below rope_high_freq_factor={decoder.rope_high_freq_factor}"
        check.wrong(f"{key}.rope_low_freq_factor", decoder.rope_low_freq_factor, rule)
    families = family_names()
    if decoder.family not in families:
        rule = f"is not one of {', '.join(families)}{nearest(decoder.family, families)}"
        check.wrong(f"{key}.family", decoder.family, rule)
