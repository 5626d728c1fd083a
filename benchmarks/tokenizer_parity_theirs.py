"""The other side of benchmarks/tokenizer_parity.py: `python FILE FOLDER` in an environment with `transformers`.

Reads FOLDER/texts.json and writes FOLDER/answers.json, lists with an entry for each text.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path


def read(file: Path):
    """The tokenizer as `transformers` reads the file."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if file.suffix == ".gguf":
        return PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    if file.is_dir() or (file.parent / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(file if file.is_dir() else file.parent)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(file, Path(folder) / "tokenizer.model")
        path = str(Path(folder) / "tokenizer.model")
        return PreTrainedTokenizerFast.from_pretrained(folder, vocab_file=path, add_bos_token=True)


def encode(tokenizer, texts, **options):
    return tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **options)["input_ids"]


def llama_cpp(file: Path, texts) -> dict:
    try:
        from llama_cpp import Llama
    except ImportError:
        return {}
    model = Llama(str(file), vocab_only=True, verbose=False)
    return {
        name: [model.tokenize(text.encode(), add_bos=False, special=special) for text in texts]
        for name, special in (("llama_cpp", True), ("llama_cpp_plain", False))
    }


def render(file: Path, given: list) -> list:
    """The text of each conversation; none where the template refuses. The last input is the special tokens."""
    from datetime import datetime

    from transformers.utils import chat_template_utils

    class Fixed(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26)

    chat_template_utils.datetime = Fixed
    texts = []
    for messages in given[:-1]:
        options = {"chat_template": file.read_text(), "add_generation_prompt": True, **given[-1]}
        try:
            texts.append(chat_template_utils.render_jinja_template([messages], **options)[0][0])
        except Exception:
            texts.append(None)
    return texts


def main() -> None:
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    texts = json.loads((folder / "texts.json").read_text())
    if file.suffix == ".jinja":
        answers = render(file, texts)
        (folder / "answers.json").write_text(json.dumps(answers))
        return
    tokenizer = read(file)
    special = encode(tokenizer, texts, add_special_tokens=False)
    answers = {
        "special": special,
        "plain": encode(tokenizer, texts, add_special_tokens=False, split_special_tokens=True),
        "prompt": encode(tokenizer, texts),
        "decoded": tokenizer.batch_decode(special, skip_special_tokens=True, clean_up_tokenization_spaces=False),
    }
    if file.suffix == ".gguf":
        import gguf
        from tokenizers import pre_tokenizers

        pre = gguf.GGUFReader(file).fields.get("tokenizer.ggml.pre")
        if pre is not None and pre.contents() == "smollm":
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
            answers["digits"] = encode(tokenizer, texts, add_special_tokens=False)
            answers["plain_digits"] = encode(tokenizer, texts, add_special_tokens=False, split_special_tokens=True)
        answers |= llama_cpp(file, texts)
    elif ".model" in file.suffixes:
        import sentencepiece

        answers["sentencepiece"] = sentencepiece.SentencePieceProcessor(str(file)).encode(texts)
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
