"""Every kind of tokenizer against its own tooling, what control tokens in text become, and damaged files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shared_data import data
from small_tokenizers import (
    AWKWARD,
    SPECIAL,
    TEXTS,
    byte_level,
    gguf_of_json,
    gguf_of_model,
    sentencepiece_model,
    write,
)
from tokenizers import decoders, models, pre_tokenizers

from launch.job_generate import Stream
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.gguf_tokenizer import from_metadata
from tandem.data.sentencepiece_tokenizer import CorpusTokenizer, SentencePieceTokenizer
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import EnvironmentFailure
from tandem.model.formats.installed import KNOWN, _locate, open_installed

FIXTURE = json.loads(Path(__file__).with_name("tokenizer_parity.json").read_text())
SHIPPED = Path(__file__).parents[1] / "tandem" / "pretrained" / "laptop" / "tokenizer.model"


@cache
def real(name: str) -> Tokenizer:
    """A tokenizer of the fixture; skips the test where its file is absent."""
    if name.endswith(".model"):
        return load_tokenizer(data(f"tokenizers/{name}"))
    installed = "gemma3-270m" if name.startswith("gemma") else "smollm2-135m-instruct"
    if not _locate(KNOWN[installed].pieces[0]):
        pytest.skip(f"{installed} is not installed")
    return from_metadata(open_installed(installed).metadata, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_model()


@pytest.fixture(scope="module")
def all_kinds(folder: Path, model: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One of each kind, and each with and without a space before a text."""
    plain = sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=["<think>", "\n\n"])
    return {
        "tokenizer.json": load_tokenizer(folder),
        "gguf gpt2": from_metadata(gguf_of_json(folder), "a.gguf"),
        "sentencepiece": SentencePieceTokenizer(model),
        "sentencepiece plain": SentencePieceTokenizer(plain),
        "gguf llama": from_metadata(gguf_of_model(model), "b.gguf"),
        "gguf llama plain": from_metadata(gguf_of_model(plain), "c.gguf"),
        "corpus": load_tokenizer(SHIPPED),
    }


@pytest.mark.parametrize("name", [name for name in FIXTURE if name != "texts"])
@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
def test_ids_are_those_of_transformers(name: str, special: bool) -> None:
    # benchmarks/tokenizer_parity.py writes the fixture; it does the same with 10,000 texts.
    if special and name.endswith(".model"):
        pytest.skip("SentencePiece knows no control tokens in text")
    wanted = dict(enumerate(FIXTURE[name]["special"]))
    if not special:
        wanted |= {int(index): ids for index, ids in FIXTURE[name]["plain"].items()}
    tokenizer = real(name)
    found = [ids.tolist() for ids in tokenizer.encode_many(FIXTURE["texts"], special)]
    assert [index for index in wanted if found[index] != wanted[index]] == []


@pytest.mark.parametrize("name", [name for name in FIXTURE if name != "texts"])
def test_real_texts_come_back(name: str) -> None:
    tokenizer = real(name)
    pieces = b"".join(tokenizer.pieces)
    lossy = "\u2581" if "gguf" not in name or "gemma" in name else ""
    for text in FIXTURE["texts"]:
        # SmolLM2's vocabulary lacks 21 of the 256 bytes; SentencePiece reads U+2581 as the space that it writes so.
        if all(byte in pieces for byte in text.encode()) and not (lossy and lossy in text):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_real_special_tokens_are_what_the_files_say() -> None:
    smollm2 = real("SmolLM2-135M-Instruct.Q4_1.gguf")
    assert (smollm2.eos_ids, smollm2.bos_id, smollm2.pad_id, smollm2.start) == ((2, 0), 1, 2, ())
    assert smollm2.named["eos_token"] == "<|im_end|>"
    assert len(smollm2.special) == 17
    gemma3 = real("gemma-3-270m-q4_k_m.gguf")
    assert (gemma3.eos_ids, gemma3.bos_id, gemma3.pad_id, gemma3.start) == ((1, 106), 2, 0, (2,))
    assert gemma3.vocab_size == 262_144
    assert gemma3.line_end.sum() == 32  # one to thirty-one newlines, and the byte


def test_the_stand_ins_tokenizer_is_as_ever() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    assert isinstance(tokenizer, CorpusTokenizer)
    assert tokenizer.sha256 == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id, tokenizer.start) == ((1,), 0, None, (1,))
    ids = np.concatenate([tokenizer.encode_prompt(text) for text in FIXTURE["texts"]])
    digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
    assert digest == "af50d1e597bee0599f54b8eab8097f72ea62cf5a7592a236b5ff72db07cac6b4"


def test_a_gguf_file_and_the_json_file_cut_text_alike(folder: Path, all_kinds: dict[str, Tokenizer]) -> None:
    texts = [*AWKWARD, *FIXTURE["texts"]]
    for special in (False, True):
        pairs = zip(
            *(all_kinds[kind].encode_many(texts, special) for kind in ("tokenizer.json", "gguf gpt2")), strict=True
        )
        assert all(a.tolist() == b.tolist() for a, b in pairs)


@pytest.mark.parametrize("kind", ["", " plain"])
def test_a_gguf_file_and_sentencepiece_cut_text_alike(all_kinds: dict[str, Tokenizer], kind: str) -> None:
    texts = [*AWKWARD, *FIXTURE["texts"]]
    for special in (False, True):
        mine, own = (all_kinds[f"{file}{kind}"].encode_many(texts, special) for file in ("gguf llama", "sentencepiece"))
        assert [text for text, a, b in zip(texts, mine, own, strict=True) if a.tolist() != b.tolist()] == []


def test_a_json_file_is_read_as_its_own_library_does(folder: Path, all_kinds: dict[str, Tokenizer]) -> None:
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in AWKWARD:
        ids = all_kinds["tokenizer.json"].encode(text, special=True).tolist()
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert all_kinds["tokenizer.json"].decode(ids) == library.decode(ids)
        if text:
            assert all_kinds["tokenizer.json"].encode_prompt(text, special=True).tolist() == library.encode(text).ids


@settings(deadline=None, max_examples=150)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60))
@example(text=" ")
@example(text=" a")
def test_any_text_comes_back(all_kinds: dict[str, Tokenizer], text: str) -> None:
    for kind, tokenizer in all_kinds.items():
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text, kind
        # Behind a prompt the same ids begin with the space that encoding put before the text, if it does.
        assert tokenizer.decode_response(ids) in (text, f" {text}"), kind
        assert tokenizer.encode_many([text, "a"])[0].tolist() == ids.tolist()


@pytest.mark.parametrize("text", AWKWARD)
def test_plain_text_holds_no_control_token(all_kinds: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in all_kinds.values():
        assert not set(tokenizer.encode(text).tolist()) & set(tokenizer.special.values())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_control_token_is_one_token_where_it_is_asked_for(all_kinds: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in all_kinds.items():
        assert tokenizer.special, kind
        for name, token in tokenizer.special.items():
            assert tokenizer.encode(name, special=True).tolist() == [token], kind
            assert tokenizer.encode(f"a{name}b", special=True).tolist().count(token) == 1, kind
            assert token not in tokenizer.encode(f"a{name}b").tolist(), kind


def test_parts_are_plain_texts_between_control_tokens(all_kinds: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in all_kinds.items():
        end, name = tokenizer.eos_id, next(iter(tokenizer.special))
        # Without names in the texts it is what their own tooling makes of the whole.
        spelled = next(text for text, token in tokenizer.special.items() if token == end)
        whole = tokenizer.encode(f"a b{spelled} c{spelled}", special=True).tolist()
        assert tokenizer.encode_parts(["a b", end, " c", end]).tolist() == whole, kind
        found = tokenizer.encode_parts([end, f"x {name}", end]).tolist()
        assert (found[0], found[-1]) == (end, end), kind
        assert not set(found[1:-1]) & set(tokenizer.special.values()), kind
        assert tokenizer.decode(found[1:-1]).strip() == f"x {name}", kind
        assert tokenizer.encode_parts([]).tolist() == [], kind


def test_a_control_token_among_the_pieces_does_not_come_out_of_text(tmp_path: Path) -> None:
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "abcs<>/\u2581"), ("\u2581a", -1.0)]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"eos_token": "</s>", "unk_token": "<unk>"})
    backend.encode_special_tokens = True
    assert 1 in backend.encode("a</s>").ids  # the library's plain text is not
    tokenizer = load_tokenizer(tmp_path)
    assert 1 not in tokenizer.encode("a</s>").tolist()
    assert tokenizer.decode(tokenizer.encode("a</s>")) == "a</s>"
    assert tokenizer.encode("xyz").tolist() == [9, 0]  # what it does not know stays unknown


def test_text_that_streams_is_whole_again(all_kinds: dict[str, Tokenizer]) -> None:
    text = "Joki ☃ jäätyi\n  江 👩\u200d👧 x"
    for kind, tokenizer in all_kinds.items():
        ids = tokenizer.encode(text)
        stream = Stream(tokenizer, ("", ""))
        shown = [stream.add(ids[place : place + 1], [False]) for place in range(len(ids))]
        assert "".join(shown) + stream.rest() == tokenizer.decode_response(ids), kind
        assert tokenizer.decode_response(ids).removeprefix(" ") == text, kind
        # Half a character is held back.
        assert not any("\ufffd" in piece for piece in shown), kind


def test_lines_begin_behind_tokens_that_end_in_a_newline(all_kinds: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in all_kinds.items():
        assert tokenizer.line_end.shape == (tokenizer.vocab_size,)
        ids = tokenizer.encode("a\nb\n\nc")
        text = "".join(tokenizer.decode_response([token]) for token in ids[tokenizer.line_end[ids]])
        assert text.count("\n") == 3, kind
        assert not tokenizer.line_end[list(tokenizer.special.values())].any()


def test_ids_beyond_the_vocabulary_are_no_text(all_kinds: dict[str, Tokenizer]) -> None:
    for tokenizer in all_kinds.values():
        ids = [*tokenizer.encode("a b").tolist(), tokenizer.vocab_size, tokenizer.vocab_size + 500]
        assert tokenizer.decode(ids) == "a b"
        assert tokenizer.decode_response(ids).strip() == "a b"


def test_a_prompt_begins_as_the_files_say(folder: Path, tmp_path: Path, model: bytes) -> None:
    assert load_tokenizer(folder).start == (1,)  # by its post-processor
    content = (folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content)
    config = {"bos_token": "<|start|>", "eos_token": "<|end|>", "add_bos_token": False}
    write(tmp_path / "tokenizer_config.json", config)
    without = load_tokenizer(tmp_path / "tokenizer.json")
    assert without.start == ()
    assert without.encode_prompt("a").tolist() == without.encode("a").tolist()
    # Something must predict the first token.
    assert without.encode_prompt("").tolist() == [1]
    assert without.pad_id == without.eos_id == 0  # it names none
    (tmp_path / "spm").mkdir()
    (tmp_path / "spm" / "tokenizer.model").write_bytes(model)
    assert load_tokenizer(tmp_path / "spm").start == (1,)
    write(tmp_path / "spm" / "tokenizer_config.json", {"add_bos_token": False})
    assert load_tokenizer(tmp_path / "spm").start == ()
    for pre, begins in (("gpt-2", ()), ("llama-bpe", (1,))):
        metadata = gguf_of_json(folder) | {"tokenizer.ggml.pre": pre}
        del metadata["tokenizer.ggml.add_bos_token"]
        assert from_metadata(metadata, "a.gguf").start == begins


def test_space_behind_control_tokens_is_as_the_files_say(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    legacy = load_tokenizer(tmp_path)
    write(tmp_path / "tokenizer_config.json", {"legacy": False})
    for tokenizer, text in ((legacy, " year"), (load_tokenizer(tmp_path), "year")):
        ids = tokenizer.encode("</s>year", special=True)
        assert ids[0] == 2
        assert tokenizer.decode_response(ids[1:]) == text


def test_an_unchanged_file_is_read_once(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model)
    first = load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path) is first
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    changed = load_tokenizer(tmp_path)
    assert (set(first.eos_ids), set(changed.eos_ids)) == ({2}, {2, 3})
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(EnvironmentFailure, match="has neither"):
        load_tokenizer(tmp_path)


def test_what_ends_a_response_is_said_in_several_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    write(tmp_path / "special_tokens_map.json", {"eos_token": "<|end|>"})
    assert load_tokenizer(tmp_path).eos_ids == (0,)
    write(tmp_path / "config.json", {"text_config": {"eos_token_id": [1, 0]}})
    assert load_tokenizer(tmp_path).eos_ids == (0, 1)
    write(tmp_path / "generation_config.json", {"eos_token_id": 2})
    assert load_tokenizer(tmp_path).eos_ids == (0, 2)
    (tmp_path / "special_tokens_map.json").unlink()
    assert load_tokenizer(tmp_path).eos_ids == (2,)
    write(tmp_path / "generation_config.json", {"eos_token_id": 9999})
    with pytest.raises(EnvironmentFailure, match=r"tokenizer\.json: ends a text with token 9999 of 501"):
        load_tokenizer(tmp_path)


def test_tokens_that_only_the_files_beside_name_are_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {"eos_token": "<|turn|>", "added_tokens_decoder": {"501": {"content": "<|turn|>", "special": True}}}
    write(tmp_path / "tokenizer_config.json", config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_ids == (501,)
    assert tokenizer.vocab_size == 502
    assert tokenizer.encode("a<|turn|>", special=True).tolist()[-1] == 501
    # The library numbers them itself: a file that gives another number means another vocabulary.
    write(tmp_path / "tokenizer_config.json", config | {"added_tokens_decoder": {"700": {"content": "<|turn|>"}}})
    with pytest.raises(EnvironmentFailure, match=r"at 501, tokenizer_config\.json at 700"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_is_known_by_what_it_means(folder: Path, tmp_path: Path, all_kinds: dict[str, Tokenizer]) -> None:
    assert len({tokenizer.sha256 for tokenizer in all_kinds.values()}) == len(all_kinds)
    assert load_tokenizer(folder).sha256 == all_kinds["tokenizer.json"].sha256
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<pad>", "bos_token": "<|start|>"})
    assert load_tokenizer(tmp_path).sha256 != all_kinds["tokenizer.json"].sha256
    metadata = gguf_of_json(folder)
    assert from_metadata(metadata, "elsewhere.gguf").sha256 == all_kinds["gguf gpt2"].sha256
    # An array's middle counts, too.
    types = np.array(metadata["tokenizer.ggml.token_type"], np.int32)
    one = from_metadata(metadata | {"tokenizer.ggml.token_type": types}, "a.gguf")
    types = types.copy()
    types[250] = 5
    other = from_metadata(metadata | {"tokenizer.ggml.token_type": types}, "a.gguf")
    assert one.sha256 == all_kinds["gguf gpt2"].sha256 != other.sha256


def test_truncation_and_padding_of_a_file_are_not_ours(folder: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXTS[1])) == TEXTS[1]
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize("pre", ["falcon", "no-such"])
def test_unknown_pre_tokenizers_are_refused_by_name(folder: Path, pre: str) -> None:
    with pytest.raises(
        EnvironmentFailure, match=rf"a\.gguf: tokenizer\.ggml\.pre={pre} is not known; known are .*smollm"
    ):
        from_metadata(gguf_of_json(folder) | {"tokenizer.ggml.pre": pre}, "a.gguf")


DAMAGED_METADATA = {
    "kind": ({"model": "bert"}, "kind 'bert'"),
    "no tokens": ({"tokens": []}, "no tokenizer.ggml.tokens"),
    "tokens": ({"tokens": [1, 2]}, "must be an array of str"),
    "twice": ({"tokens": ["a", "b", "a"]}, "'a' twice, at 0 and 2"),
    "types": ({"token_type": [1]}, "501 tokens and 1 tokenizer.ggml.token_type"),
    "merge of nothing": ({"merges": ["zz qq"]}, "'zz qq', of which 'zz' is no token"),
    "merge of one": ({"merges": ["th"]}, "'th', of which"),
    "end": ({"eos_token_id": 501}, "eos_token_id is 501, of 501 tokens"),
    "negative": ({"bos_token_id": -1}, "bos_token_id is -1"),
    "long": ({"tokens": ["a" * 5000, "b"]}, "token of 5000 characters"),
    "pre": ({"pre": 7}, "pre must be a string"),
}


@pytest.mark.parametrize("damage", DAMAGED_METADATA)
def test_metadata_that_contradicts_itself_is_one_line(folder: Path, damage: str) -> None:
    changes, message = DAMAGED_METADATA[damage]
    metadata = gguf_of_json(folder) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(EnvironmentFailure) as error:
        from_metadata(metadata, "a.gguf")
    assert message in str(error.value)
    assert str(error.value).startswith("a.gguf: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scores", [[0.5], [float("nan")] * 500])
def test_scores_that_are_none_are_refused(model: bytes, scores: list[float]) -> None:
    with pytest.raises(EnvironmentFailure, match=r"500 tokens and \d finite tokenizer\.ggml\.scores"):
        from_metadata(gguf_of_model(model) | {"tokenizer.ggml.scores": scores}, "a.gguf")


def test_a_file_that_ends_no_text_is_refused(model: bytes) -> None:
    with pytest.raises(EnvironmentFailure, match=r"a\.gguf: no token ends a text"):
        from_metadata(gguf_of_model(model) | {"tokenizer.ggml.eos_token_id": None}, "a.gguf")


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
DAMAGED_FILES = {
    "tokenizer.json": [
        b"", b"{", b"[]", b"{}", b'{"model": 1}', b"[" * 100_000, b"\xff\xfe", b'{"model": {"type": "BPE"}}',
        json.dumps({"model": BPE | {"merges": [["a", "z"]]}}).encode(),
        json.dumps({"model": BPE | {"vocab": {"a": -1}}}).encode(),
        json.dumps({"model": BPE, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}).encode(),
        json.dumps({"model": BPE}).encode(),  # nothing ends a text
        json.dumps({"model": BPE | {"vocab": {}}}).encode(),
        json.dumps({"model": BPE | {"vocab": {"a": 0, "b": 0}}}).encode(),
    ],
    "tokenizer.model": [b"", b"\0" * 50, b"nothing", b"IQ== 0\nIg== 1\n", b"\x0a\xff\xff\xff\xff\x0f"],
    "a.gguf": [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16],
    "a.txt": [b"text"],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_damaged_files_are_one_line_that_names_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(EnvironmentFailure, match=r"cannot be read|a folder"):
        load_tokenizer(tmp_path / name)
    for content in DAMAGED_FILES[name]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EnvironmentFailure) as error:
            load_tokenizer(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[]", "must be a JSON object"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}', "added_tokens_decoder must have"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id must be"),
        ("chat_template.jinja", "\udcff", "cannot be read"),
    ],
)
def test_damaged_files_beside_a_tokenizer_are_named(
    folder: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EnvironmentFailure, match=rf"{name}: {message}"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match=r"has neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_changed_bytes_are_read_or_refused(folder: Path, model: bytes, tmp_path: Path, name: str) -> None:
    whole = (folder / "tokenizer.json").read_bytes() if name == "tokenizer.json" else model
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>" if name == "tokenizer.json" else "</s>"})
    rng = random.Random(0)
    read = 0
    for _ in range(60):
        changed = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4, 30])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if rng.random() < 0.2:
            changed = changed[: rng.randrange(len(changed))]
        (tmp_path / name).write_bytes(changed)
        with contextlib.suppress(EnvironmentFailure):
            tokenizer = load_tokenizer(tmp_path)
            tokenizer.decode(tokenizer.encode("a year\n☃"))
            read += 1
    assert read < 60


def test_sentencepiece_is_asked_as_it_is(model: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = SentencePieceTokenizer(model)
    for text in AWKWARD:
        assert tokenizer.encode(text).tolist() == processor.encode(text)
    assert tokenizer.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert set(SPECIAL).isdisjoint(tokenizer.special)
