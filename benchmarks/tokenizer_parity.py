r"""Does this project cut text as `transformers` does when it reads the same file? 10,000 pieces of mixed text.

    uv venv .transformers && uv pip install --python .transformers/bin/python \
        transformers torch sentencepiece protobuf gguf
    uv run python -m benchmarks.tokenizer_parity --python .transformers/bin/python --data ../shared/data FILE…

A FILE is a GGUF file, a `.model` of SentencePiece (which the `sentencepiece` package reads too), or a folder with
`tokenizer.json`. A row a file: how many of `texts` get the same ids, with control tokens read as such (`special`) and
as text (`plain`), with what a prompt begins with (`prompt`), and come back as the same text (`decoded`); `exact` come
back as they were. `digits` compares with `transformers` once its reading of a GGUF file cuts digits one by one, as the
file asks (`tokenizer.ggml.pre=smollm`) and `transformers` overlooks; `llama_cpp` with llama.cpp, where the other Python
has it. `first` shows the first text that differs, our ids and theirs.

A FILE may also be a chat template (`.jinja`): of `conversations`, `same` give the same text on both sides, which is
none where a template refuses one (`refused`).

`--fixture tests/tokenizer_parity.json` writes instead what the other side makes of the texts in that file, which the
tests compare with.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.chat import ChatTemplate
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import EnvironmentFailure

# Shares of the texts; what is left is English.
COUNTS = {"code": 2500, "languages": 2500, "emoji": 500, "control": 500, "special": 1000}
LANGUAGES = ("arabic", "bengali", "finnish", "indonesian", "korean", "russian", "swahili", "telugu")
TRANSLATIONS = {
    "chinese": "zh-en.src.zh",
    "japanese": "ja-en.src.ja",
    "german": "de-en.src.de",
    "czech": "cs-en.src.cs",
}
EMOJI = [
    "😀",
    "👍🏽",
    "👩\u200d👩\u200d👧\u200d👦",
    "🇫🇮",
    "❤\ufe0f",
    "☃",
    "🦙",
    "🧑🏿\u200d🚀",
    "✨",
    "5\ufe0f\u20e3",
    "🫠",
]
# Control tokens of these vocabularies and of others, and what looks like them.
NAMES = [
    *["<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    *["<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "<0x0A>", "<0xE2>", "[CLS]", "[SEP]", "[MASK]"],
    *[
        "[INST]",
        "[/INST]",
        "<think>",
        "</think>",
        "<repo_name>",
        "<table>",
        "\u2581",
        "\u2581\u2581",
        "<|im_",
        "start|>",
    ],
    *["<|im_end", "<\uff5cend\u2581of\u2581sentence\uff5c>"],
]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
_SYSTEM, _QUESTION = (
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "What is 2 + 2? \n\t<é>"},
)
_ANSWER, _MORE = {"role": "assistant", "content": "It is\n\n4."}, {"role": "user", "content": "Are you sure?"}
CONVERSATIONS = [
    *([_QUESTION], [_SYSTEM, _QUESTION], [_QUESTION, _ANSWER, _MORE], [_SYSTEM, _QUESTION, _ANSWER, _MORE]),
    *([_QUESTION, _MORE], [_ANSWER], [_SYSTEM]),
]


def texts(data: Path, count: int, seed: int = 0) -> Iterator[str]:
    """Pieces of text of all kinds, the same every time."""
    rng = random.Random(seed)
    counts = {kind: count * share // 10_000 for kind, share in COUNTS.items()}
    english = [line for line in _lines(data / "text" / "tinystories.sample.txt") if line.strip()]
    yield from rng.sample(english, count - sum(counts.values()))
    yield from islice(_code(rng), counts["code"])
    yield from islice(_foreign(data, rng), counts["languages"])
    for _ in range(counts["emoji"]):
        yield "".join(rng.choice([*EMOJI, " ", "a", "\n"]) for _ in range(rng.randint(1, 12)))
    characters = [*map(chr, range(32)), "\x7f", "\u0085", "\u200b", "\u200d", "\ufeff", "\u2028", "\u00a0", "\ufffd"]
    for _ in range(counts["control"]):
        yield "".join(rng.choice([*characters, "x", " 1", "\U0010ffff"]) for _ in range(rng.randint(1, 12)))
    for _ in range(counts["special"]):
        words = rng.choice(english).split()[:6]
        yield rng.choice(["", " ", "\n"]).join(
            rng.choice([rng.choice(NAMES), *words]) for _ in range(rng.randint(1, 9))
        )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _code(rng: random.Random) -> Iterator[str]:
    """One to eight lines of the standard library, with their line ends."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(root.glob("*.py")) + sorted((root / "asyncio").glob("*.py"))
    while True:
        lines = rng.choice(files).read_text(encoding="utf-8").splitlines(keepends=True)
        start = rng.randrange(max(1, len(lines) - 8))
        if text := "".join(lines[start : start + rng.randint(1, 8)]):
            yield text


def _foreign(data: Path, rng: random.Random) -> Iterator[str]:
    sources: list[list[str]] = []
    for language in LANGUAGES:
        articles = json.loads((data / f"evals/tydiqa_goldp/{language}_tydiqa_dev.json").read_text())["data"]
        sources.append([paragraph["context"][:400] for article in articles for paragraph in article["paragraphs"]])
    for name in TRANSLATIONS.values():
        sources.append(_lines(data / "evals/wmt22/sources" / f"generaltest2022.{name}"))
    while True:
        for source in sources:
            yield rng.choice(source)


def ours(tokenizer: Tokenizer, given: Sequence[str]) -> dict[str, Any]:
    """Ids and texts as the other side gives them."""
    began = time.perf_counter()
    special = tokenizer.encode_many(given, special=True)
    seconds = time.perf_counter() - began
    return {
        "special": [ids.tolist() for ids in special],
        "plain": [ids.tolist() for ids in tokenizer.encode_many(given)],
        "prompt": [[*tokenizer.start, *ids.tolist()] for ids in special],
        "decoded": [tokenizer.decode(ids) for ids in special],
        "seconds": seconds,
    }


def compare(mine: dict[str, Any], other: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """How many texts get the same, for what both sides have, and the first that does not."""
    row: dict[str, Any] = {"texts": len(given)}
    # What the other side has more of is another reading of the same question.
    same_question = {"digits": "special", "plain_digits": "plain", "sentencepiece": "plain"}
    same_question |= {"llama_cpp": "special", "llama_cpp_plain": "plain"}
    for name, theirs in other.items():
        own = mine[same_question.get(name, name)]
        differs = [index for index, (a, b) in enumerate(zip(own, theirs, strict=True)) if a != b]
        row[name] = len(given) - len(differs)
        if differs:
            index = differs[0]
            row.setdefault("first", {})[name] = [given[index][:80], own[index][:24], theirs[index][:24]]
    return row


def write_fixture(path: Path, files: Sequence[Path], python: str) -> None:
    """What the other side makes of the texts in `path`, by file: `special`, and of `plain` what is not the same."""
    given = json.loads(path.read_text())["texts"]
    fixture: dict[str, Any] = {"texts": given}
    for file in files:
        found = theirs(python, file, given)
        special, plain = (
            found.get(name, found[kind]) for name, kind in (("digits", "special"), ("plain_digits", "plain"))
        )
        differing = {index: ids for index, ids in enumerate(plain) if ids != special[index]}
        fixture[file.name] = {"special": special, "plain": differing}
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in fixture.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def rendered(file: Path, messages: list[dict[str, str]]) -> str | None:
    """A conversation by a template; None where that refuses."""
    try:
        return ChatTemplate(file.read_text(), TOKENS).render(messages)
    except EnvironmentFailure:
        return None


def theirs(python: str, file: Path, given: Sequence[Any]) -> Any:
    """What the other side makes of a file and these inputs."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "texts.json").write_text(json.dumps(given))
        program = Path(__file__).with_name("tokenizer_parity_theirs.py")
        subprocess.run([python, str(program), str(file.resolve()), folder], check=True)
        return json.loads((Path(folder) / "answers.json").read_text())


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--python", required=True, help="a Python with transformers")
    parser.add_argument("--data", type=Path, required=True, help="holds text/ and evals/")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--fixture", type=Path)
    options = parser.parse_args(argv)
    if options.fixture:
        write_fixture(options.fixture, options.files, options.python)
        return []
    given = list(texts(options.data, options.count))
    table = []
    for file in options.files:
        if file.suffix == ".jinja":
            other = theirs(options.python, file, [*CONVERSATIONS, TOKENS])
            pairs = list(zip(map(partial(rendered, file), CONVERSATIONS), other, strict=True))
            row = {"file": file.name, "conversations": len(pairs), "same": sum(a == b for a, b in pairs)}
            row["refused"] = sum(a is None and b is None for a, b in pairs)
            table.append(row)
            print(json.dumps(row))
            continue
        other = theirs(options.python, file, given)
        began = time.perf_counter()
        tokenizer = load_tokenizer(file)
        loading = time.perf_counter() - began
        mine = ours(tokenizer, given)
        row = {"file": file.name, "vocabulary": tokenizer.vocab_size, "seconds_to_load": round(loading, 2)}
        row |= compare(mine, other, given)
        plain = [np.asarray(ids) for ids in mine["plain"]]
        row["exact"] = sum(tokenizer.decode(ids) == text for ids, text in zip(plain, given, strict=True))
        row["characters_per_second"] = round(sum(map(len, given)) / mine["seconds"])
        table.append(row)
        print(json.dumps(row, ensure_ascii=False))
    return table


if __name__ == "__main__":
    main()
