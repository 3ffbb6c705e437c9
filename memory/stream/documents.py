"""Long texts cut into blocks of at most so many tokens, on sentence boundaries where there are any.

Knows nothing of models but a function that counts tokens. Any script, one pass, memory bounded by
one block: a text may be given whole or as a stream of pieces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from ...errors import ConfigError, InputError

MIN_LIMIT = 16
"""Smallest limit in tokens: any one character fits in it, whatever the tokenizer."""

_FEED = 16_384
"""Characters scanned for sentence ends at a time."""

_LONGEST = 4_096
"""Characters after which a sentence without an end is cut, so that its tokens stay countable."""

_MARKS = "。！？｡．؟۔।॥։።፧။๚"
_CLOSERS = "\"'”’»›)\\]」』）】》*_"

# A mark needs a space after it where scripts put one; "Mr. J. Smith", "3.14" and "etc. and" have
# none of their own. The lookbehinds start a match only at the first mark of a run: without them a
# line of a million dots would be scanned a million times.
_END = re.compile(
    rf"(?:(?<![.!?…])(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\bMrs)[.!?…]++[{_CLOSERS}]*+(?=\s++[^a-z])"
    rf"|[{_MARKS}]++[{_CLOSERS}]*+"
    r"|(?<=\n)(?:[ \t\r]*+\n)++)"
)
_LINE = re.compile(r"\n")
_BLANK = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a text.

    Args:
        index: place among the blocks, from 0.
        start, end: characters of the whole text, so that `text == whole[start:end]`.
        text: neither empty nor blank at either end.
        tokens: its length under the counter it was split with.
    """

    index: int
    start: int
    end: int
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sentence, and about how many tokens it adds to those before it."""

    start: int
    text: str
    tokens: int


def split(
    text: str | Iterable[str], limit: int, count: Callable[[str], int], *, overlap: int = 0
) -> Iterator[Block]:
    """Yield blocks of at most `limit` tokens that cover everything in `text` but blanks, in order.

    A block ends where a sentence ends; a sentence over the limit is cut at a word, or else between
    two characters. Each sentence is counted once and each block once more, because the tokens of a
    text need not be the sum of its parts'.

    Args:
        text: the whole text, or its pieces in order.
        limit: tokens, at least `MIN_LIMIT`.
        count: tokens of a text.
        overlap: a block starts with the last whole sentences of the one before that have at most
            this many tokens together; less than half of `limit`.

    Raises:
        ConfigError: `limit` or `overlap` breaks its rule.
        InputError: the text has NUL bytes or lone surrogates; says where.
    """
    if limit < MIN_LIMIT:
        raise ConfigError(f"limit={limit} must be at least {MIN_LIMIT} tokens, so any text can fit")
    if not 0 <= overlap < limit / 2:
        raise ConfigError(f"overlap={overlap} must be at least 0 and less than half of {limit=}")
    return _pack(_pieces(sentences(text), limit, count), limit, count, overlap)


def sentences(text: str | Iterable[str]) -> Iterator[str]:
    """Cut a text where its sentences and paragraphs end; joined, they are the text again.

    Blanks go with the sentence after them. None is longer than 4096 characters.
    """
    buffer, offset = "", 0
    for piece in _feed(text):
        _check(piece, offset)
        offset += len(piece)
        buffer += piece
        start = 0
        # A match at the very end may go on in the next piece.
        for match in _END.finditer(buffer, endpos=len(buffer) - 1):
            yield from _no_longer(buffer[start : match.end()])
            start = match.end()
        buffer = buffer[start:]
        while len(buffer) > _LONGEST:
            size = _boundary(buffer, _LONGEST)
            yield buffer[:size]
            buffer = buffer[size:]
    if buffer:
        yield buffer


def truncate(text: str, limit: int, count: Callable[[str], int]) -> str:
    """The longest start of `text` found within `limit` tokens, without blanks at its ends.

    It ends with a sentence, a line or a word, the first of these that keeps half of it, or else
    between two characters.
    """
    text = text.strip()
    tokens = count(text)
    return text if tokens <= limit else text[: _cut(text, limit, tokens, count)].rstrip()


def whole(text: str) -> str:
    """`text` up to its last sentence's end, or else word's end, that keeps half of it; for a text
    that was cut off anywhere."""
    text = text.strip()
    ended = text.rstrip(_CLOSERS)[-1:] in f".!?…{_MARKS}"
    return text if ended else text[: _boundary(text, len(text))].rstrip()


def _pack(
    pieces: Iterator[_Piece], limit: int, count: Callable[[str], int], overlap: int
) -> Iterator[Block]:
    held: list[_Piece] = []
    old = used = index = 0  # pieces of `held` that were in the block before; their tokens; blocks
    for piece in chain(pieces, (None,)):
        while len(held) > old and not (piece and _room(held, used, piece, limit)):
            block, taken = _fill(index, held, limit, count)
            if taken <= old:  # the overlap leaves no room for anything new
                del held[0]
                old -= 1
                continue
            yield block
            index += 1
            keep = taken
            while keep > 0 and sum(p.tokens for p in held[keep - 1 : taken]) <= overlap:
                keep -= 1
            held, old = held[keep:], taken - keep
            used = sum(p.tokens for p in held)
        if piece:
            while held and not _room(held, used, piece, limit):
                used -= held.pop(0).tokens
                old -= 1
            held.append(piece)
            used += piece.tokens


def _room(held: list[_Piece], used: int, piece: _Piece, limit: int) -> bool:
    return not held or (
        used + piece.tokens <= limit and held[-1].start + len(held[-1].text) == piece.start
    )


def _fill(
    index: int, held: list[_Piece], limit: int, count: Callable[[str], int]
) -> tuple[Block, int]:
    """A block of as many of `held` as fit together, at least one, and how many these are."""
    taken = len(held)
    while True:
        joined = "".join(p.text for p in held[:taken])
        text = joined.strip()
        tokens = count(text)
        over = tokens - limit
        if over <= 0 or taken == 1:
            start = held[0].start + len(joined) - len(joined.lstrip())
            return Block(index, start, start + len(text), text, tokens), taken
        while over > 0 and taken > 1:
            taken -= 1
            over -= held[taken].tokens


def _pieces(texts: Iterable[str], limit: int, count: Callable[[str], int]) -> Iterator[_Piece]:
    """Sentences with their tokens, the long ones cut, long stretches of blanks left out."""
    start, rest = 0, ""
    for sentence in texts:
        rest += sentence
        left = 0  # about how many tokens `rest` has, once some were cut off
        while body := rest.strip():
            tokens = left if left > 2 * limit else count(body)
            size = len(rest)
            lead = size - len(rest.lstrip())
            if tokens > limit:
                size = lead + _cut(body, limit, tokens, count)
                left = tokens - count(rest[:size].strip())
                tokens -= left
            yield _Piece(start, rest[:size], tokens + rest.count("\n", 0, lead))
            start += size
            rest = rest[size:]
        if len(rest) > _LONGEST:
            start += len(rest)
            rest = ""


def _cut(text: str, limit: int, tokens: int, count: Callable[[str], int]) -> int:
    """Characters of a start of `text` within `limit` tokens, where `tokens` > `limit` is its all.

    The guess is interpolated, as tokens are nearly even along a text, and halved where they are
    not; 15/16 of the limit is near enough.
    """
    low, high, below, above = 1, len(text), 1, tokens
    for step in range(64):
        if high - low <= 1 or below >= limit - limit // 16:
            break
        share = 0.5 if step % 3 == 2 else (limit - below) / (above - below)
        guess = min(max(low + int((high - low) * share), low + 1), high - 1)
        found = count(text[:guess].rstrip())
        if found <= limit:
            low, below = guess, found
        else:
            high, above = guess, found
    size = _boundary(text, low)
    while size > 1 and count(text[:size].rstrip()) > limit:
        size = _boundary(text, size - 1)
    return size


def _boundary(text: str, size: int) -> int:
    """Where to end a start of `text` of at most `size` characters, keeping half of them."""
    floor = size // 2
    for pattern in (_END, _LINE, _BLANK):
        ends = [m.end() for m in pattern.finditer(text, floor, size + 1) if m.end() <= size]
        if ends and ends[-1] > floor:
            return ends[-1]
    end = size
    while end > max(floor, 1) and end < len(text) and _joined(text[end - 1], text[end]):
        end -= 1
    return end if end > max(floor, 1) else max(size, 1)


def _joined(before: str, after: str) -> bool:
    """Whether two characters are drawn as one: accents, emoji sequences, skin tones."""
    return (
        unicodedata.category(after).startswith("M")
        or "\u200d" in (before, after)
        or "\U0001f3fb" <= after <= "\U0001f3ff"
    )


def _feed(text: str | Iterable[str]) -> Iterator[str]:
    for piece in (text,) if isinstance(text, str) else text:
        for start in range(0, len(piece), _FEED):
            yield piece[start : start + _FEED]


def _no_longer(sentence: str) -> Iterator[str]:
    while len(sentence) > _LONGEST:
        size = _boundary(sentence, _LONGEST)
        yield sentence[:size]
        sentence = sentence[size:]
    yield sentence


def _check(piece: str, offset: int) -> None:
    if "\0" in piece:
        raise InputError(
            f"the document has a NUL at character {offset + piece.index(chr(0))}; remove it, or"
            " read the file in the encoding it is in"
        )
    try:
        piece.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the document has a lone surrogate at character {offset + error.start}, which is no"
            " Unicode text; decode the source with errors='replace'"
        ) from None
