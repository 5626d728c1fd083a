"""`load_tokenizer`: the tokenizer of a file, whatever its kind.

A file a kind: `sentencepiece_tokenizer` (the corpus' own, and checkpoints' models), `huggingface_tokenizer`
(`tokenizer.json`), `gguf_tokenizer` (the one inside a GGUF file). What all are is in `abstract_tokenizer`.
"""

from __future__ import annotations

import os
from pathlib import Path

from tandem.data.abstract_tokenizer import Tokenizer
from tandem.errors import EnvironmentFailure


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint's folder (`tokenizer.json`, else `tokenizer.model`), of one of these files, or of a
    GGUF file.

    Special tokens are those of the JSON files beside it. Raises EnvironmentFailure, one line that names the file, where
    there is none or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise EnvironmentFailure(f"{path}: has neither tokenizer.json nor tokenizer.model")
        path = found[0]
    # Each kind brings a library that the others do not need.
    if path.suffix == ".json":
        from tandem.data import huggingface_tokenizer

        return huggingface_tokenizer.load(path)
    if path.suffix == ".gguf":
        from tandem.data import gguf_tokenizer

        return gguf_tokenizer.load(path)
    if ".model" in path.suffixes:  # Mistral's are called tokenizer.model.v3
        from tandem.data import sentencepiece_tokenizer

        return sentencepiece_tokenizer.load(path)
    raise EnvironmentFailure(f"{path}: a tokenizer is a folder, tokenizer.json, a .model file or a .gguf file")
