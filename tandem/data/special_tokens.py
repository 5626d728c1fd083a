"""What the JSON files beside a tokenizer say about its special tokens and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem import foreign
from tandem.errors import EnvironmentFailure

# Names that tokenizer_config.json and special_tokens_map.json give to tokens, and chat templates read.
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# The largest that is read: Gemma's tokenizer.json has 33 MB, settings have some kilobytes.
MOST_BYTES = 512 * 2**20
# Of a chat template: what is longer is no template, and is refused when it is used.
MOST_CHARACTERS = 2**20


@dataclass(frozen=True)
class SpecialTokens:
    """As the files have it; whether the vocabulary has these tokens is for the tokenizer to find."""

    named: Mapping[str, str] = field(default_factory=dict)  # by the names of `NAMES`
    added: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # `added_tokens_decoder`
    add_bos: bool | None = None  # None: not said
    # Of SentencePiece: whether the space before a text stands behind control tokens too; `legacy` is the files' word.
    spaced: bool = True
    eos_ids: tuple[int, ...] = ()  # of generation_config.json, else of config.json
    template: str | None = None

    def ends(self, own: int | None, vocab_size: int, name: str) -> tuple[int, ...]:
        """What ends a response: the vocabulary's `own` end, then those of generation.

        Raises EnvironmentFailure where none is said, or one is not in the vocabulary.
        """
        ends: tuple[int, ...] = () if own is None else (own,)
        ends += tuple(end for end in dict.fromkeys(self.eos_ids) if end != own)
        if not ends:
            raise EnvironmentFailure(
                f"{name}: no token ends a text; tokenizer_config.json beside it must name an eos_token"
            )
        for end in ends:
            if not 0 <= end < vocab_size:
                raise EnvironmentFailure(f"{name}: ends a text with token {end} of {vocab_size}")
        return ends


def read_special_tokens(folder: Path) -> SpecialTokens:
    """What the folder of a tokenizer says. Raises EnvironmentFailure that names a file which is damaged."""
    config = _object(folder / "tokenizer_config.json")
    listed = _object(folder / "special_tokens_map.json")
    named = {name: text for name in NAMES if (text := _content(config.get(name)) or _content(listed.get(name)))}
    return SpecialTokens(
        named,
        _added(config.get("added_tokens_decoder"), folder / "tokenizer_config.json"),
        config["add_bos_token"] if isinstance(config.get("add_bos_token"), bool) else None,
        config.get("legacy") is not False,
        _ends(folder),
        _template(folder, config.get("chat_template")),
    )


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """A JSON file's content. Raises EnvironmentFailure where it cannot be read, is too large or is no JSON."""
    try:
        if path.stat().st_size > most_bytes:
            raise EnvironmentFailure(f"{path}: has more than {most_bytes} bytes")
        return foreign.json_value(path.read_bytes())
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise EnvironmentFailure(f"{path}: is not JSON ({error})") from None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise EnvironmentFailure(f"{path}: must be a JSON object")
    return found


def _content(token: Any) -> str | None:
    """A token's name, which is written alone or with how it is matched."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _added(tokens: Any, path: Path) -> dict[int, dict[str, Any]]:
    if tokens is None:
        return {}
    try:
        return {int(key): {**token, "content": str(token["content"])} for key, token in tokens.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EnvironmentFailure(f"{path}: added_tokens_decoder must have a token with `content` for each id") from None


def _ends(folder: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        settings = _object(folder / name)
        # Models of several media have the text's settings one level down.
        inner = settings.get("text_config")
        found = settings.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(type(token) is int for token in ids):
                raise EnvironmentFailure(f"{folder / name}: eos_token_id must be an id or a list of ids")
            return tuple(ids)
    return ()


def _template(folder: Path, template: Any) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(MOST_CHARACTERS)
        except (OSError, UnicodeDecodeError) as error:
            raise EnvironmentFailure(f"{path}: cannot be read: {error}") from None
    if isinstance(template, list):  # several by name
        by_name = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
