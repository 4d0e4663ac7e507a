"""HCL as Consul takes it, in rules and in configuration: HashiCorp's first version of it, or JSON.

Nothing is evaluated; there is nothing to evaluate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

TOKEN = re.compile(
    r"""(?P<nothing>\s+|(?:\#|//)[^\n]*|/\*.*?\*/)
    |<<-?(?P<end>\w+)\n(?P<text>.*?)\n[ \t]*(?P=end)\b
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<mark>[{}\[\],=:])
    |(?P<word>[\w.+-]+)""",
    re.VERBOSE | re.DOTALL,
)


def parse(text: str) -> Any:
    """What :func:`items` understands; :raises ValueError: where it is neither"""
    try:
        return json.loads(text)
    except ValueError:
        pass
    tokens = [*_tokens(text)][::-1]
    try:
        return _body(tokens, None)
    except IndexError:
        raise ValueError("it ends in the middle") from None


def items(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys of an object and their values; what is repeated comes again."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        for each in value:
            yield from items(each)


Token = tuple[str, str]  # what it is, and its text


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise ValueError(f"{text[at : at + 20]!r} is not understood")
        at = found.end()
        if found["string"]:
            yield "text", _unquoted(found["string"])
        elif found["end"]:
            yield "text", found["text"]
        elif found["mark"]:
            yield found["mark"], found["mark"]
        elif found["word"]:
            yield "text", found["word"]


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


def _body(tokens: list[Token], end: str | None) -> list[dict[str, Any]]:
    """Up to that; each key with its value. Of `service "web" {` the value is an object, too."""
    found = []
    while tokens if end is None else tokens[-1][0] != end:
        words = [_word(tokens)]
        while tokens[-1][0] == "text":
            words.append(_word(tokens))
        if tokens[-1][0] in "=:":
            tokens.pop()
        value = _value(tokens)
        for word in reversed(words):
            value = [{word: value}]
        found += value
        if tokens and tokens[-1][0] == ",":
            tokens.pop()
    return found


def _word(tokens: list[Token]) -> str:
    kind, text = tokens.pop()
    if kind != "text":
        raise ValueError(f"{text} is not understood there")
    return text


def _value(tokens: list[Token]) -> Any:
    kind = tokens[-1][0]
    if kind == "{":
        tokens.pop()
        found: list[Any] = _body(tokens, "}")
    elif kind == "[":
        tokens.pop()
        found = []
        while tokens[-1][0] != "]":
            found.append(_value(tokens))
            if tokens[-1][0] == ",":
                tokens.pop()
    else:
        return _word(tokens)
    tokens.pop()
    return found
