"""Whether two models read the same tokens, which one drafting for the other needs."""

from __future__ import annotations

from tandem.data.abstract_tokenizer import Tokenizer
from tandem.errors import ConfigurationError

# Entries that a refusal shows.
SHOWN = 3


def same_vocabulary(first: Tokenizer, second: Tokenizer) -> int:
    """The number of ids that two vocabularies have in common, all of the same text or control token.

    The longer one may go on: with rows that fill an embedding up, and with control tokens that the shorter lacks. How
    text is cut is not compared, since a pair reads what one tokenizer has cut. Raises ConfigurationError that shows the
    first entries that differ.
    """
    shared = min(first.vocab_size, second.vocab_size)
    mine, others = _entries(first), _entries(second)
    differing = [index for index in range(shared) if mine[index] != others[index]]
    # Text that one side alone can write would be no token at all for the other.
    longer = max(mine, others, key=len)
    differing += [index for index in range(shared, len(longer)) if isinstance(longer[index], bytes) and longer[index]]
    if not differing:
        return shared
    shown = "; ".join(f"{index} is {_shown(mine, index)} and {_shown(others, index)}" for index in differing[:SHOWN])
    sizes = f"{first.vocab_size} and {second.vocab_size} entries, {len(differing)} of which differ"
    names = f"{first.name} and {second.name}"
    raise ConfigurationError([f"{names}: a pair needs one vocabulary; these have {sizes}: {shown}"])


def _entries(tokenizer: Tokenizer) -> list[bytes | str]:
    """What each id stands for: its text, or the name of a control token."""
    entries: list[bytes | str] = list(tokenizer.pieces)
    for name, index in tokenizer.special.items():
        entries[index] = name
    return entries


def _shown(entries: list[bytes | str], index: int) -> str:
    if index >= len(entries):
        return "absent"
    entry = entries[index]
    if isinstance(entry, str):
        return f"the control token {entry}"
    return repr(entry.decode(errors="backslashreplace"))
