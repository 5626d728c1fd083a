"""What the steps that decode have in common: how, from which prompts, and the models read as they are decoded with.

Whatever verifies or is compared with a primary is held against its own: a tandem that was trained jointly with a
primary against that one, all else against the run's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch.drafting import WEIGHTS, drafter, kept_tokens, load_primary, primary_of
from launch.graph import NOT_MEANING, Context, Step
from launch.steps.rules import load_router
from launch.steps.sample import kinds_of
from tandem.config import ChatMode, DecodeConfig, Experiment, Verification
from tandem.data.chat import chat_template, encode_questions
from tandem.data.files import Files
from tandem.data.iterator import prompts
from tandem.data.packing import open_tokens
from tandem.data.prompts import file_category, prompt_file, read_prompts
from tandem.data.tokenizer import Tokenizer, load_tokenizer
from tandem.errors import ConfigurationError
from tandem.model.bound import Bound

if TYPE_CHECKING:
    from tandem.measure.pair import Pair

PROMPTS = "prompts"  # the role of the files


@dataclass(frozen=True)
class Sampling:
    """The law that tokens are drawn from."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, decode: DecodeConfig) -> Sampling:
        """The configured law; greedy decoding cuts nothing."""
        return cls(0.0) if decode.temperature == 0 else cls(decode.temperature, decode.top_k, decode.top_p)


@dataclass(frozen=True)
class Speculation:
    """How drafts are accepted, and what is decoded together."""

    verification: Verification
    num_samples: int
    batch_size: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Decoding(Step):
    """A step that decodes. Inputs: corpus, primary, and the models of its kind. `dtype` is that of products."""

    dtype: str
    seed: int
    prompt_tokens: int
    max_new_tokens: int

    def prompts_of(self, context: Context, split: str, count: int) -> list[np.ndarray]:
        """`count` pieces of the text of a split, each of `prompt_tokens` ids."""
        return list(self._cut(context, split, count))

    def _cut(self, context: Context, split: str, count: int, documents: np.ndarray | None = None) -> np.ndarray:
        """The same [count, prompt_tokens], of some `documents` alone where these are given by their numbers."""
        corpus = context.inputs["corpus"]
        tokens, line_end = open_tokens(corpus / "tokens", split), load_tokenizer(corpus).line_end
        sizes = (count, self.prompt_tokens, self.seed)
        return prompts(tokens.array, tokens.offsets, *sizes, line_end, documents)


@dataclass(frozen=True)
class Room:
    """The most positions that a prompt and its response may take, and what sets them, for messages."""

    positions: int
    why: str

    def check(self, what: str, prompt_tokens: int, max_new_tokens: int) -> None:
        """Raises ConfigurationError where `what`, of so many tokens, and its response take more."""
        if prompt_tokens + max_new_tokens > self.positions:
            problem = f"{what} has {prompt_tokens} tokens; with decode.max_new_tokens={max_new_tokens} that is more "
            raise ConfigurationError([problem + f"than {self.why}"])


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedDecoding(Decoding):
    """A step that decodes `prompts` pieces of the held-out text, or as many prompts of each of its files."""

    primary: str  # the name of its row
    sampling: Sampling
    speculation: Speculation
    prompts: int
    repeats: int
    room: Room = field(metadata=NOT_MEANING)
    chat: ChatMode = ChatMode.auto

    def decode_config(self, **more: Any) -> DecodeConfig:
        settings = {"max_new_tokens": self.max_new_tokens, **vars(self.sampling), **vars(self.speculation)}
        return DecodeConfig(**settings, **more)

    def given_prompts(self, context: Context) -> tuple[list[np.ndarray], list[str]]:
        """The prompts, and their categories if they are of files or of a text of several kinds."""
        if files := context.files.get(PROMPTS):
            tokenizer = load_tokenizer(context.inputs["corpus"])
            sizes = (self.prompt_tokens, self.max_new_tokens)
            return encode_prompts(files, tokenizer, self.chat, self.prompts, *sizes, self.room)
        kinds = np.asarray(kinds_of(context.inputs["corpus"]))
        found: list[np.ndarray] = []
        categories: list[str] = []
        for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
            wanted = min(int(count), -(-self.prompts // len(set(kinds))))
            found += list(self._cut(context, "heldout", wanted, np.flatnonzero(kinds == kind)))
            categories += [str(kind)] * wanted
        return (found, categories) if categories else (self.prompts_of(context, "heldout", self.prompts), [])


def prompt_files(experiment: Experiment) -> Files:
    """The files that `data.prompts` names, in their order, by the categories that prompts without one are given."""
    asked = experiment.data.prompts
    directory = experiment.tasks.data_dir if asked else None
    return Files([(file_category(name), prompt_file(name, directory)) for name in asked or ()])


def encode_prompts(
    files: Files,
    tokenizer: Tokenizer,
    chat: ChatMode,
    count: int,
    prompt_tokens: int,
    max_new_tokens: int,
    room: Room,
) -> tuple[list[np.ndarray], list[str]]:
    """`count` prompts of each file as ids, and their categories: whole ones as `chat` says, of texts the beginning.

    Raises ConfigurationError where one is too long, or there is no chat template and must be one.
    """
    template = chat_template(chat, tokenizer)
    encoded, categories = [], []
    for category, path in files.entries:
        found = list(read_prompts(path, count, category, files))
        questions = iter(encode_questions(tokenizer, template, [prompt.text for prompt in found if prompt.whole]))
        for prompt in found:
            ids = next(questions) if prompt.whole else tokenizer.encode_prompt(prompt.text)[:prompt_tokens]
            room.check(f"data.prompts={path}: a prompt", len(ids), max_new_tokens)
            encoded.append(ids)
            categories.append(prompt.category)
    return encoded, categories


def own_primary(inputs: Mapping[str, Path], model: str, primary: str) -> tuple[str, Path]:
    """The name and file of the primary that the model of the input `model` is held against; the run's is `primary`."""
    return primary_of(inputs.get(model), model, (primary, inputs["primary"] / WEIGHTS))


def load_primaries(
    inputs: Mapping[str, Path], models: Iterable[str], primary: str, dtype: str
) -> tuple[dict[str, Bound], dict[str, str]]:
    """The primaries of `models`, by the names of their rows, and the name of each model's own."""
    found = {name: own_primary(inputs, name, primary) for name in models}
    primaries = {name: load_primary(path, dtype) for name, path in dict(found.values()).items()}
    return primaries, {model: name for model, (name, _) in found.items()}


def load_pair(
    inputs: Mapping[str, Path], name: str, drafter_kind: str, primary: str, dtype: str, vocabulary: int | None
) -> Pair:
    """The drafter `name`, its router and the primary that verifies it; it drafts the `vocabulary` most frequent
    tokens."""
    from tandem.measure.pair import Pair

    verifier, path = own_primary(inputs, name, primary)
    verifying, kept = load_primary(path, dtype), kept_tokens(inputs["corpus"], vocabulary)
    own = drafter(inputs[name], drafter_kind, dtype, verifying, kept=kept)
    return Pair(verifier, verifying, own, load_router(inputs[f"router_{name}"], own))
