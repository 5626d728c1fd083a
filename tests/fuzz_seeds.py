"""Small right files of every kind that other people make: what fuzzing begins with."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_forms import FORMS, LOG, WHOLE, Folder
from gguf_blocks import BLOCKS, TYPES, gguf_bytes, random_blocks, text
from sample_results import joint_results, sample_metrics, sample_results, whole_results
from small_tokenizers import byte_level, gguf_of_json, gguf_of_model, sentencepiece_model

from tandem.architecture import DecoderConfig, Norm
from tandem.model.checkpoint import save
from tandem.model.families import Layout, family, is_matrix, tensors_of
from tandem.model.formats.huggingface import save_huggingface
from tandem.model.parameters import parameters
from tasks import invented

OWN, OWN_WEIGHTS = "weights.safetensors", {"norm": np.ones(4, np.float32)}
SIZES = DecoderConfig(num_layers=1, d_model=8, num_heads=2, num_kv_heads=1, d_ff=8, vocab_size=12, head_size=4)
FAMILIES = {
    "llama": SIZES,
    "mistral": replace(SIZES, family="mistral", window=4),
    "qwen2": replace(SIZES, family="qwen2", query_key_value_bias=True),
    "qwen3": replace(SIZES, family="qwen3", query_key_norm=True),
    "gemma2": replace(SIZES, family="gemma2", post_norms=True, window=4, global_every=2),
    "gemma3": replace(SIZES, family="gemma3", post_norms=True, query_key_norm=True, window=4, global_every=6),
    "neox": replace(
        SIZES, family="neox", num_kv_heads=2, norm=Norm.layer, gated=False, tie_embeddings=False,
        query_key_value_bias=True, output_bias=True, mlp_bias=True, parallel_residual=True, rotary_fraction=0.25,
    ),
}  # fmt: skip
# Of the words that GGUF files have, after their architecture.
GGUF_KEYS = {
    "block_count": "num_layers", "embedding_length": "d_model", "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads", "feed_forward_length": "d_ff", "attention.key_length": "head_size",
}  # fmt: skip

WORDS = ["a few words of text", "and some more of these words", "words, words and text\n"] * 3
MODEL = {"vocab_size": 300, "num_threads": 1}

TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{%- for m in messages -%}{% generation %}{{ m['content'] }}{% endgeneration %}{%- endfor -%}",
    "{{ strftime_now('%d %b') }}{{ messages | tojson(indent=2) }}{% if tools %}{{ raise_exception('no') }}{% endif %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{% set ns = namespace(n=0) %}{% for i in range(9) %}"
    "{% set ns.n = ns.n + i %}{% if i > 3 %}{% break %}{% endif %}{% endfor %}{{ f(ns.n) }}",
)

HUGGINGFACE_TOKENIZERS: tuple[dict[str, Any], ...] = (
    {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["\u2581", -2.0], ["a", -1.0], ["b", -3.5]]},
    {"type": "WordPiece", "unk_token": "[UNK]", "max_input_chars_per_word": 9, "continuing_subword_prefix": "##",
     "vocab": {"[UNK]": 0, "a": 1, "##b": 2}},
    {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1}},
    {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3},
     "merges": [["a", "b"]]},
)  # fmt: skip
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\p{L}+"}, "behavior": "Isolated", "invert": False}


def held(config: DecoderConfig, layout: Layout) -> list[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint with these sizes, by their names in files."""
    values = {each.name: np.full(each.shape, 0.5, np.float32) for each in parameters(config)}
    return [
        (name, np.ascontiguousarray(stored.join([values[o].T if is_matrix(o) else values[o] for o in ours], config)))
        for name, stored, ours in tensors_of(layout, config)
    ]


def folder_of(directory: Path) -> Folder:
    """The files of a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def safetensors() -> list[Folder]:
    """A directory of each family, in one file and in shards."""
    made = []
    for name, config in FAMILIES.items():
        with tempfile.TemporaryDirectory() as directory:
            kind, shard = family(name), 1000 if name in ("llama", "neox") else 10**9
            save_huggingface(Path(directory), kind.write_config(config), held(config, kind.huggingface), shard)
            made.append({file: _short(content) for file, content in folder_of(Path(directory)).items()})
    return [*made, own()]


def own() -> Folder:
    """The weights of a step, with what is said beside them and without a checksum, which nothing would pass."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / OWN
        shared = {"reference": {"path": "nowhere", "content": "0"}, "names": {}}
        save(path, OWN_WEIGHTS, {"decoder": SIZES.described, "layer_map": [1], "other": shared})
        return folder_of(Path(directory))


def _short(content: bytes) -> bytes:
    """A safetensors file without the spaces that fill its header up."""
    form = FORMS[".safetensors"]
    return content if content.startswith(b"{") else form.write(form.read(content))


def gguf() -> list[Folder]:
    """A file of each family, two of which have a tokenizer, and one with blocks of every kind."""
    with tempfile.TemporaryDirectory() as directory:
        spec = gguf_of_json(byte_level(Path(directory), WORDS))
    tokenizers = {"llama": spec, "gemma3": gguf_of_model(sentencepiece_model(WORDS, **MODEL))}
    made = []
    for name, config in FAMILIES.items():
        layout, kind = family(name).gguf, (*family(name).architectures, "")[0]
        if layout is None:
            continue
        said = {"general.architecture": kind, "general.alignment": 32, f"{kind}.rope.dimension_count": 1}
        said |= {f"{kind}.{key}": getattr(config, ours) for key, ours in GGUF_KEYS.items()}
        tensors = [(file, array.shape, "F32", array.tobytes()) for file, array in held(config, layout)]
        made.append(gguf_bytes(_pairs(said | tokenizers.get(name, {})), tensors))
    blocks = [(kind, (1, BLOCKS[kind][1]), TYPES[kind], random_blocks(kind, 1)) for kind in BLOCKS]
    made.append(gguf_bytes(_pairs({"general.architecture": "llama"}), blocks))
    return [{"model.gguf": content} for content in made]


def _pairs(said: dict[str, Any]) -> list[tuple[str, int, bytes]]:
    def encoded(value: Any) -> tuple[int, bytes]:
        if isinstance(value, str):
            return 8, text(value)
        if isinstance(value, list):
            inner = [encoded(each) for each in value]
            return 9, struct.pack("<IQ", inner[0][0], len(inner)) + b"".join(data for _, data in inner)
        kind, form = {bool: (7, "<?"), int: (5, "<i"), float: (6, "<f")}[type(value)]
        return kind, struct.pack(form, value)

    return [(key, *encoded(value)) for key, value in said.items()]


def llama2c() -> list[Folder]:
    """A checkpoint with the embedding as its output matrix, and one without."""
    made = []
    for vocab in (12, -12):
        sizes, heads = (8, 8, 1, 2, 1, vocab, 2), 4
        count = 12 * 8 * (1 if vocab > 0 else 2) + 2 * 8 + 2 * 64 + 2 * 32 + 3 * 64 + 8 + 2 * heads
        made.append({"model.bin": struct.pack("<7i", *sizes) + np.full(count, 0.5, "<f4").tobytes()})
    return made


def sentencepiece() -> list[Folder]:
    """Models of each kind, with and without bytes."""
    kinds = ("bpe", "unigram", "char", "word")
    options = [MODEL | {"model_type": kind, "vocab_size": 300 if kind == "bpe" else 30, "byte_fallback": kind == "bpe"}
               for kind in kinds]  # fmt: skip
    options.append(MODEL | {"model_type": "unigram", "vocab_size": 23, "byte_fallback": False,
                            "normalization_rule_name": "nmt_nfkc"})  # fmt: skip
    options[1:4] = [each | {"hard_vocab_limit": False} for each in options[1:4]]
    config = json.dumps({"eos_token": "</s>", "bos_token": {"content": "<s>"}, "legacy": False}).encode()
    return [{"tokenizer.model": sentencepiece_model(WORDS, **each), "tokenizer_config.json": config}
            for each in options]  # fmt: skip


def tokenizer_json() -> list[Folder]:
    """A tokenizer of each kind, and the settings beside it."""
    beside = {
        "tokenizer_config.json": {
            "eos_token": "<e>", "add_bos_token": True, "bos_token": {"content": "<e>"}, "chat_template": TEMPLATES[0],
            "added_tokens_decoder": {"9": {"content": "<e>", "special": True, "lstrip": False}},
        },
        "special_tokens_map.json": {"pad_token": "<e>"},
        "generation_config.json": {"eos_token_id": [9, 1]},
    }  # fmt: skip
    settings = {name: json.dumps(content).encode() for name, content in beside.items()}
    made = []
    for model in HUGGINGFACE_TOKENIZERS:
        added = {"id": len(model["vocab"]), "content": "<e>", "special": True, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False}  # fmt: skip
        beside["tokenizer_config.json"]["added_tokens_decoder"] = {str(added["id"]): {"content": "<e>"}}
        spec = {
            "version": "1.0", "added_tokens": [added], "normalizer": {"type": "NFC"}, "model": model,
            "decoder": METASPACE,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, METASPACE]}, "post_processor": None,
        }  # fmt: skip
        settings["tokenizer_config.json"] = json.dumps(beside["tokenizer_config.json"]).encode()
        settings["generation_config.json"] = json.dumps({"eos_token_id": [added["id"]]}).encode()
        made.append({"tokenizer.json": json.dumps(spec).encode(), **settings})
    with tempfile.TemporaryDirectory() as directory:
        made.append(folder_of(byte_level(Path(directory), WORDS)))
    return made


def chat() -> list[Folder]:
    """Templates in a file, and in the settings."""
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    named = [{"name": "default", "template": TEMPLATES[0]}, {"name": "tool_use", "template": "{{ tools }}"}]
    made = [{"chat_template.jinja": each.encode(), "tokenizer_config.json": _json(config)} for each in TEMPLATES]
    return [*made, {"tokenizer_config.json": _json(config | {"chat_template": named})}]


def tasks() -> list[Folder]:
    """The files of every task, and the other layouts in which they come."""
    contents = {path: text.encode() for path, text in invented.contents().items()}
    made = [{path: contents[path] for path in paths} for paths in _together(contents)]

    def asked(text: str) -> list[dict[str, Any]]:
        return [{"id": text, "title": "t", "context": text, "question": "q", "answers": {"text": [text[:3]]}}]

    def trivia(text: str) -> dict[str, Any]:
        return {"Data": [{"Question": text, "Answer": {"Value": "v", "Aliases": ["v", "w"]}}]}

    source, translation = (
        "".join(f'<p><seg id="{n}">{text} {n}</seg></p>' for n in (1, 2)) for text in ("a text", "ein Text")
    )
    xml = (
        f'<dataset id="x"><doc id="d" origlang="en"><src lang="en">{source}</src>'
        f'<ref lang="de" translator="A">{translation}</ref></doc></dataset>'
    )
    return [
        *made,
        {
            "squad_v2/dev-v2.0.json": _json(asked("one passage")),
            "squad_v2/train-v2.0.json": _json({"data": asked("another")}),
        },
        {
            "triviaqa/unfiltered-web-dev.json": _json(trivia("one?")),
            "triviaqa/unfiltered-web-train.json": _json(trivia("another?")),
        },
        {"lambada/lambada_test_plain_text.txt": b"a few words\nmore words\n"},
        {"wmt22/xml/wmttest2022.en-de.all.xml": xml.encode()},
    ]


def _together(paths: Iterable[str]) -> list[list[str]]:
    """The files that one task reads; of the many directions of WMT22 two."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        if path.startswith("wmt22/"):
            key = path.split("generaltest2022.")[1][:5]
        elif path.startswith(("superglue/", "fewglue/")):
            key = path.split("/")[1]
        elif path.startswith("tydiqa"):
            key = path.rpartition("/")[2].split("_")[0]
        else:
            key = path if path.startswith("mbpp/") else path.split("/")[0]
        groups.setdefault(key, []).append(path)
    left_out = {"cs-uk", "de-fr", "en-cs", "en-hr", "en-ja", "en-liv", "en-ru", "en-uk", "fr-de", "ja-en", "liv-e",
                "ru-en", "ru-sa", "sah-r", "uk-cs", "uk-en", "zh-en", "bengali", "finnish", "korean", "russian",
                "swahili", "telugu", "indonesian"}  # fmt: skip
    return [own for key, own in groups.items() if key not in left_out]


def prepared() -> list[Folder]:
    """What a prepared dataset says of itself."""
    form = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    about = {"name": "boolq", "fileFormat": "tfrecord", "splits": [
        {"name": "validation", "shardLengths": ["2", "1"], "filepathTemplate": form},
        {"name": "train", "shardLengths": ["3"]},
    ]}  # fmt: skip
    names = [f"boolq-validation.tfrecord-0000{n}-of-00002" for n in range(2)] + ["boolq-train.tfrecord-00000-of-00001"]
    return [{"dataset_info.json": _json(about), "features.json": b"{}"} | dict.fromkeys(names, b"")]


def prompts() -> list[Folder]:
    """Prompts in each kind of file."""
    rows = [{"prompt": "p", "category": "c"}, {"turns": ["t", "u"], "question_id": 1}]
    return [
        {"prompts.jsonl": b"".join(_json(row) + b"\n" for row in rows)},
        {"prompts.txt": b"a text\n\nanother\n"},
        {"prompts.tsv": b"a text\t3\nanother\t4\n"},
        {"prompts.csv": b'id,article,highlights\n1,"a ""text""\nof lines",h\n2,another,h\n'},
    ]


def corpus() -> list[Folder]:
    """Texts to train on, plain and compressed."""
    plain = b"a text\n-----\nanother text\n\xc3\xa9\n"
    packed = {f"corpus.txt{suffix}": FORMS[suffix].write({"text": plain}) for suffix in (".gz", ".xz")}
    return [{"corpus.txt": plain}, *({name: content} for name, content in packed.items())]


def wandb_logs() -> list[Folder]:
    """A log with what a run logs, and one that is cut off."""
    history = {"item": [{"key": "loss", "valueJson": "1.5"}, {"nestedKey": ["a", "b"], "valueJson": "2"}]}
    records = [{"num": "1", "run": {"runId": "r", "project": "p"}}, {"num": "2", "history": history},
               {"num": "3", "exit": {}}]  # fmt: skip
    made = FORMS[".wandb"].write([[WHOLE, record] for record in records])
    parts = FORMS[".wandb"].write([[2, records[1]], [4, records[1]]])
    return [{"run.wandb": made}, {"run.wandb": made[:-3]}, {"run.wandb": parts}, {"run.wandb": LOG}]


def runs() -> list[Folder]:
    """A run's directory, with every table that results may have, and a sweep's."""
    config = {"model": {"name": "tandem_bison_gecko", "primary": {"name": "bison"}, "secondary": {"name": "gecko"}},
              "train": {"name": "distil", "recipe": "distil"}, "data": {"name": "stdlib"}, "gamma": 5, "tau": None,
              "platform": {"name": "local"}, "seed": 0}  # fmt: skip
    metrics = b"".join(_json(record) + b"\n" for record in sample_metrics()[::60])
    beside = {"run/config.yaml": FORMS[".yaml"].write(config), "run/metrics.jsonl": metrics}
    made = [{"run/results.json": _json(_fewer(each)), **beside} for each in
            (sample_results(), whole_results(), joint_results(), {})]  # fmt: skip
    made += [
        {"run/results.json": _json({name: _fewer(whole_results())[name], "provenance": sample_results()["provenance"]}),
         "run/config.yaml": b"gamma: 3\n"}
        for name in whole_results() if name != "provenance"
    ]  # fmt: skip
    sweep = {"command": ["-m", "gamma=2,4"], "id": "s", "jobs": []}
    points = {"points": [{"axes": {"gamma": 2}, "run": "r", "command": "c", "state": "done"}]}
    return [*made, {"sweeps/s/sweep.json": _json(sweep), "sweeps/s/points.json": _json(points)}]


def _fewer(results: dict[str, Any]) -> dict[str, Any]:
    """Results with at most six rows in a table."""
    return {name: rows[:3] + rows[-3:] if isinstance(rows, list) and len(rows) > 6 else rows
            for name, rows in results.items()}  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
