"""What a tokenizer is trained on: the lines of a text, in pieces that SentencePiece takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# SentencePiece leaves longer sentences out, in bytes, and any with the character that it writes for unknown ones; of
# neither does it say a word.
LONGEST = 4192
RESERVED = "\u2585"


def sample_sentences(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Every n-th sentence that is not blank, n being the smallest power of two that keeps them within `max_bytes`."""
    chosen: list[str] = []
    stride, seen, size = 1, 0, 0
    for text in texts:
        for sentence in sentences(text):
            if seen % stride == 0:
                chosen.append(sentence)
                size += len(sentence.encode())
            seen += 1
            if size > max_bytes:
                chosen, stride = chosen[::2], stride * 2
                size = sum(len(sentence.encode()) for sentence in chosen)
    return chosen


def sentences(text: str) -> Iterator[str]:
    """The lines of `text` that are not blank. What is too long is cut before a space, or where none is between two
    characters: no learnt piece crosses a space, so that a line is learnt from as the same words in many are."""
    for line in text.split("\n"):
        for part in line.split(RESERVED) if RESERVED in line else (line,):
            for sentence in _cut(part) if len(part) * 4 > LONGEST else (part,):
                if sentence.strip():
                    yield sentence


def _cut(line: str) -> Iterator[str]:
    data = line.encode()
    start = 0
    while len(data) - start > LONGEST:
        end = data.rfind(b" ", start + 1, start + LONGEST + 1)
        if end < 0:
            end = start + LONGEST
            while data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield data[start:end].decode()
        start = end
    yield data[start:].decode()
