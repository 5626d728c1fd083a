"""Chat templates: prompts of models that were tuned to answer, as the checkpoint's own template writes them.

`auto` uses a template where the checkpoint has one, `on` asks for one, `off` gives prompts as they are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tandem.config import ChatMode
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.errors import ConfigurationError, EnvironmentFailure

Message = Mapping[str, Any]  # `role`, `content`, and what else the template reads

# The longest template known here has 30,000 characters, tools for several models included.
MOST_TEMPLATE = 2**18
# What a template may add to the text of the messages.
MOST_ADDED = 2**20
# Of one rendering program, which takes some milliseconds for a prompt; and its memory in bytes.
SECONDS, PROMPTS_A_SECOND = 10, 100
MEMORY = 2**30
# What the program may see of the environment: where Python and its libraries are.
VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template as `transformers` reads it: in the sandbox, with trimmed blocks and the checkpoint's tokens.

    It runs in a program of its own with little time and memory (`chat_program.py`), and what asks for today's date gets
    the same day always.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)  # `bos_token`, `eos_token`, …
    name: str = "the checkpoint"  # for messages

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, up to where the model answers. Raises EnvironmentFailure, one line, where the
        template refuses the conversation, has an error, or takes too much of anything."""
        return self.render_many([messages], add_generation_prompt)[0]

    def render_many(self, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = True) -> list[str]:
        """`render` of each conversation, by one program."""
        if len(self.source) > MOST_TEMPLATE:
            raise EnvironmentFailure(f"{self.name}: the chat template has more than {MOST_TEMPLATE} characters")
        # Templates for tools read these two, and fail where they are not even said to be absent.
        common = {**self.tokens, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        calls = [common | {"messages": list(messages)} for messages in conversations]
        longest = max((len(json.dumps(call)) for call in calls), default=0)
        asked = {
            "template": self.source,
            "calls": calls,
            "seconds": SECONDS + len(calls) // PROMPTS_A_SECOND,
            "memory": MEMORY,
            "most_characters": longest + MOST_ADDED,
        }
        return self._run(asked) if calls else []

    def _run(self, asked: Mapping[str, Any]) -> list[str]:
        program = Path(__file__).with_name("chat_program.py")
        seconds = asked["seconds"]
        environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        try:
            done = subprocess.run(
                # Without the folder of the program, whose modules are no libraries.
                [sys.executable, "-P", str(program)],
                input=json.dumps(asked).encode(),
                capture_output=True,
                timeout=6 * seconds,  # the limit is on the processor's time, which others may have too
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFailure(f"{self.name}: the chat template takes more than {seconds} seconds") from None
        if done.returncode < 0:  # a signal, which running out of time is
            raise EnvironmentFailure(f"{self.name}: the chat template takes more than {seconds} seconds")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise EnvironmentFailure(f"{self.name}: the chat template cannot be run: {said[-1]}")
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise EnvironmentFailure(f"{self.name}: the chat template fails: {answer['error']}")
        return answer["texts"]


def chat_template(mode: ChatMode, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template that prompts go through; None: they are given as they are.

    Raises ConfigurationError where one is asked for and the checkpoint has none.
    """
    if mode is ChatMode.off:
        return None
    if tokenizer.template is not None:
        return ChatTemplate(tokenizer.template, tokenizer.named, tokenizer.name)
    if mode is ChatMode.auto:
        return None
    problem = f"data.chat=on: {tokenizer.name} has no chat template; type data.chat=off to give prompts as they are"
    raise ConfigurationError([f"{problem}, or put the template into chat_template.jinja beside tokenizer.json"])


def encode_questions(tokenizer: Tokenizer, template: ChatTemplate | None, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids [n] int32 of prompts: each what a user says first, or without a template as it stands."""
    if template is None:
        return [tokenizer.encode_prompt(text) for text in texts]
    return encode_chats(tokenizer, template, [[{"role": "user", "content": text}] for text in texts])


def encode_chats(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversations: Sequence[Sequence[Message]],
    add_generation_prompt: bool = True,
) -> list[np.ndarray]:
    """The ids [n] int32 of conversations, beginning token included where the template writes one.

    Control tokens are those that the template writes. What stands in the messages is text, even where it has their
    names: no prompt can begin another turn.
    """
    # A mark within it is what keeps a name plain, and there is none within one character.
    longest_first = sorted((name for name in tokenizer.special if len(name) > 1), key=len, reverse=True)
    names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    mark = _unused(conversations)
    marked = [_marked(messages, names, mark) for messages in conversations]
    texts = template.render_many(marked, add_generation_prompt)
    return [
        # Where no name had to be marked, this is what the checkpoint's own tooling does.
        tokenizer.encode_parts(list(_parts(text, names, tokenizer.special, mark)))
        if mark in text
        else tokenizer.encode(text, special=True)
        for text in texts
    ]


def _unused(conversations: Sequence[Sequence[Message]]) -> str:
    """A character of a private area that no message has."""
    used = set(json.dumps(list(map(list, conversations)), ensure_ascii=False))
    return next(character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in used)


def _marked(value: Any, names: re.Pattern[str], mark: str) -> Any:
    """`value` with `mark` inside each name of a control token that its texts have."""
    if isinstance(value, str):
        while found := names.search(value):  # a name may stand within another
            value = f"{value[: found.start() + 1]}{mark}{value[found.start() + 1 :]}"
        return value
    if isinstance(value, Mapping):
        return {key: _marked(inner, names, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, names, mark) for inner in value]
    return value


def _parts(text: str, names: re.Pattern[str], special: Mapping[str, int], mark: str) -> Iterator[str | int]:
    """The template's control tokens, and what stands between them without marks."""
    end = 0
    for found in names.finditer(text):
        yield text[end : found.start()].replace(mark, "")
        yield special[found[0]]
        end = found.end()
    yield text[end:].replace(mark, "")
