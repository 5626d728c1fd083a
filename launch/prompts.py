"""Prompts to decode from: cut from the held-out text, or of the files that `data.prompts` names."""

from __future__ import annotations

import numpy as np

from launch.graph import Context
from launch.steps import TOKENIZER
from tandem.config import DecodeConfig, EvalConfig, Experiment
from tandem.data.files import Files
from tandem.data.iterator import prompts
from tandem.data.packing import open_tokens
from tandem.data.prompts import file_category, prompt_file, read_prompts
from tandem.data.tokenizer import Tokenizer, load_tokenizer
from tandem.errors import ConfigurationError

PROMPTS = "prompts_from"  # the role of the files


def prompt_files(experiment: Experiment) -> Files:
    """The files that `data.prompts` names, in their order, by the categories that prompts without one are given."""
    directory = experiment.tasks.data_dir
    return Files([(file_category(name), prompt_file(name, directory)) for name in experiment.data.prompts or ()])


def heldout_prompts(context: Context, evaluation: EvalConfig, decode: DecodeConfig, seed: int) -> list[np.ndarray]:
    """`eval.prompts` pieces of the held-out text, each of `decode.prompt_tokens` ids."""
    corpus = context.inputs["corpus"]
    tokens, line_end = open_tokens(corpus / "tokens", "heldout"), load_tokenizer(corpus / TOKENIZER).line_end
    return list(prompts(tokens.array, tokens.offsets, evaluation.prompts, decode.prompt_tokens, seed, line_end))


def encode_prompts(
    files: Files, tokenizer: Tokenizer, count: int, decode: DecodeConfig
) -> tuple[list[np.ndarray], list[str]]:
    """`count` prompts of each file as ids, and their categories. Raises ConfigurationError where one fits no cache."""
    encoded, categories = [], []
    for category, path in files.entries:
        for prompt in read_prompts(path, count, category, files):
            ids = tokenizer.encode_prompt(prompt.text)
            encoded.append(ids if prompt.whole else ids[: decode.prompt_tokens])
            categories.append(prompt.category)
            check_fits(len(encoded[-1]), decode, f"data.prompts={path}: a prompt")
    return encoded, categories


def check_fits(prompt_tokens: int, decode: DecodeConfig, what: str) -> None:
    """Raises ConfigurationError where a prompt and its response take more than the cache."""
    if prompt_tokens + decode.max_new_tokens > decode.cache_tokens:
        problem = f"{what} has {prompt_tokens} tokens; with decode.max_new_tokens={decode.max_new_tokens} that is more "
        raise ConfigurationError([problem + f"than decode.cache_tokens={decode.cache_tokens}"])
