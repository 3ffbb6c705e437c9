"""Texts measured in tokens, and what of a conversation fits a budget.

Knows nothing of models but a function that counts tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from .record import RecordId, Turn
from .stream.documents import truncate


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and its tokens."""

    text: str
    tokens: int


NOTHING = Piece("", 0)

_MARKED = "\n  > "
"""Between the lines of what one side said."""


def quoted(text: str) -> str:
    """What one side said, as it stands in a note: its first line, and the others marked, so that
    none of them can pass for a label of the prompt ("the user said", "you answered")."""
    return _MARKED.join(line for line in text.splitlines() if line.strip())


def unquoted(text: str) -> str:
    """A note for a person to read, without the marks of `quoted`."""
    return text.replace(_MARKED, "\n")


@dataclass(frozen=True, slots=True)
class Spoken:
    """Turns of a conversation, oldest first, as a prompt shows them.

    Args:
        messages: two for each of `turns`.
        tokens: of all messages.
    """

    turns: tuple[Turn, ...]
    messages: tuple[BaseMessage, ...]
    tokens: int

    @property
    def records(self) -> tuple[RecordId, ...]:
        """Ids of both sides of each turn."""
        return tuple(part.id for turn in self.turns for part in (turn.user, turn.reply) if part)


class Ruler:
    """Measures and cuts texts.

    Args:
        count: tokens of a text.
    """

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count

    def measure(self, text: str) -> Piece:
        """The text with its tokens."""
        return Piece(text, self._count(text))

    def cut(self, text: str, limit: int) -> Piece:
        """The start of a text within `limit` tokens; `NOTHING` if not even a character fits."""
        piece = self.measure(truncate(text, limit, self._count)) if limit > 0 else NOTHING
        return piece if piece.text and piece.tokens <= limit else NOTHING

    def turns(
        self,
        turns: Sequence[Turn],
        budget: int,
        *,
        each: int | None = None,
        shorten: Callable[[Turn], tuple[str, str] | None] = lambda turn: None,
    ) -> Spoken:
        """The last turns as pairs of messages, within `budget` tokens.

        A turn over the limit stands as `shorten` gives it, or else both its sides are cut. Where an
        earlier turn does not fit what the later ones left, it and all before it are left out. So is
        a turn without a reply, as chat templates want messages in pairs.

        Args:
            turns: oldest first.
            each: most tokens of one turn; by default the whole budget.
            shorten: a shorter form of both sides, if there is one.
        """
        limit = budget if each is None else min(each, budget)
        shown: list[tuple[Turn, Piece, Piece]] = []
        used = 0
        for turn in reversed(turns):
            if turn.reply is None:
                continue
            heard, said = self._sides(turn.user.text, turn.reply.text)
            if heard.tokens + said.tokens > limit and (shorter := shorten(turn)):
                heard, said = self._sides(*shorter)
            if heard.tokens + said.tokens > limit:
                heard = self.cut(turn.user.text, max(limit // 2, limit - said.tokens))
                said = self.cut(turn.reply.text, limit - heard.tokens)
            tokens = heard.tokens + said.tokens
            if used + tokens > budget or not (heard.text and said.text):
                break
            shown.insert(0, (turn, heard, said))
            used += tokens
        pairs = [
            (HumanMessage(heard.text, id=turn.user.id), AIMessage(said.text, id=turn.reply.id))
            for turn, heard, said in shown
            if turn.reply is not None
        ]
        return Spoken(
            turns=tuple(turn for turn, _, _ in shown),
            messages=tuple(message for pair in pairs for message in pair),
            tokens=used,
        )

    def _sides(self, heard: str, said: str) -> tuple[Piece, Piece]:
        return self.measure(heard), self.measure(said)
