"""Lines of a file of examples as texts, in the forms that python -m data.tokenize --format reads.

    chat     {"messages": [{"role": "system" | "user" | "assistant", "content": TEXT}, ...]}
             or {"prompt": TEXT, "completion": TEXT}
    pairs    {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}
    prompts  {"prompt": TEXT[, "answer": TEXT]}

A prompt and what follows it are put together as they are. A message becomes `<|role|>`, a line feed and its
content; a line feed ends those that are not the assistant's, whose answers are counted and end with a token
of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from config.formats import CHAT, PAIRS, PROMPTS
from data.corpus import as_text
from data.find import Bad

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
TEMPLATE = "<|role|>\n"  # of a message, before its content


@dataclass(frozen=True)
class Example:
    """texts: of its segments. counted: whether each is an answer, which a training counts and which ends with
    a token of its own. kept: a line of JSON with what the tokens do not tell, of prompts.
    """

    place: str
    texts: list[str]
    counted: list[bool]
    kept: bytes = b""

    def __len__(self) -> int:
        """Characters."""
        return sum(map(len, self.texts))


Reader = Callable[[dict[str, Any], str], Example | Bad]


def _texts(value: dict[str, Any], keys: tuple[str, ...], place: str) -> list[str] | Bad:
    """The texts under keys, none of them empty."""
    found = []
    for key in keys:
        text = as_text(value.get(key), key, place)
        if isinstance(text, Bad):
            return text
        if not text:
            return Bad(place, f"the text under {key!r} is empty")
        found.append(text)
    return found


def read_chat(value: dict[str, Any], place: str) -> Example | Bad:
    if value.get("messages") is None:
        texts = _texts(value, ("prompt", "completion"), place)
        if isinstance(texts, Bad) and not {"prompt", "completion"} & value.keys():
            return Bad(place, "neither 'messages' nor 'prompt' and 'completion'")
        return texts if isinstance(texts, Bad) else Example(place, texts, [False, True])
    if {"prompt", "completion"} & value.keys():
        return Bad(place, "both 'messages' and 'prompt' or 'completion': which of them is the example?")
    return _of_messages(value["messages"], place)


def _of_messages(messages: Any, place: str) -> Example | Bad:
    if not isinstance(messages, list) or not messages:
        return Bad(place, "the value under 'messages' is no list of messages")
    texts, before, expected = [], "", USER
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        if not isinstance(message, dict):
            return Bad(place, f"{where} is no object with 'role' and 'content'")
        role, content = message.get("role"), as_text(message.get("content"), "content", place)
        if role not in (SYSTEM, USER, ASSISTANT):
            return Bad(place, f"the role of {where} is {role!r:.40}, not {SYSTEM}, {USER} or {ASSISTANT}")
        if isinstance(content, Bad):
            return Bad(place, f"{where}: {content.reason}")
        if role != expected and (role != SYSTEM or number > 1):
            return Bad(place, f"{where} is of the {role}, where one of the {expected} must be")
        before += TEMPLATE.replace("role", role)
        if role == ASSISTANT:
            if not content:
                return Bad(place, f"{where}: the text under 'content' is empty")
            texts += [before, content]
            before = ""
        else:
            before += content + "\n"
        expected = ASSISTANT if role == USER else USER
    if before:
        return Bad(place, f"the last message is of the {role}, where one of the {ASSISTANT} must be")
    return Example(place, texts, [False, True] * (len(texts) // 2))


def read_pair(value: dict[str, Any], place: str) -> Example | Bad:
    texts = _texts(value, ("prompt", "chosen", "rejected"), place)
    if isinstance(texts, Bad):
        return texts
    if texts[1] == texts[2]:
        return Bad(place, "the texts under 'chosen' and 'rejected' are the same")
    return Example(place, texts, [False, True, True])


def read_prompt(value: dict[str, Any], place: str) -> Example | Bad:
    texts = _texts(value, ("prompt",), place)
    if isinstance(texts, Bad):
        return texts
    kept = {"prompt": texts[0]}
    if value.get("answer") is not None:
        answer = as_text(value["answer"], "answer", place)
        if isinstance(answer, Bad):
            return answer
        kept["answer"] = answer
    return Example(place, texts, [False], json.dumps(kept).encode() + b"\n")


READERS: dict[str, Reader] = {CHAT: read_chat, PAIRS: read_pair, PROMPTS: read_prompt}
