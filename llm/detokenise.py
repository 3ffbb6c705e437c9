"""From ids, one at a time, to text that may be printed at once. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = "\N{REPLACEMENT CHARACTER}"


class Detokeniser:
    """Decodes ids to text and never emits half a character.

    What a token adds to a text depends on the tokens before it (a blank in front of a word, bytes
    of one character), so the tokens of the last emitted piece are decoded once more with the new
    ones, and what they add is the difference.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._fresh: list[int] = []

    def push(self, id: int) -> str:
        """The text that `id` completes; empty while a character is still open."""
        self._fresh.append(id)
        text = self._added()
        if text.endswith(_HALF):
            return ""
        if text:
            self._context, self._fresh = self._fresh, []
        return text

    def flush(self) -> str:
        """What remains at the end, without the bytes of a character that never closed."""
        text = self._added().rstrip(_HALF)
        self._context, self._fresh = [], []
        return text

    def _added(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._fresh)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


class StopText:
    """Holds back text that may turn out to be the start of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that may be shown; sets `found` and drops the rest once a stop string is in."""
        self._held += text
        starts = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        self.found = bool(starts)
        safe = min(starts) if starts else len(self._held) - self._doubtful()
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def flush(self) -> str:
        """What was held back, once nothing more can come."""
        shown, self._held = self._held, ""
        return shown

    def _doubtful(self) -> int:
        """Length of the longest end of the held text that starts a stop string."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:size])
            ),
            default=0,
        )


class ReplyText:
    """A reply's text as its ids arrive: whole characters only, and nothing from a stop string on.

    Args:
        stops: texts that end the reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._characters = Detokeniser(tokenizer)
        self._stop = StopText(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; the text before it has been given out."""
        return self._stop.found

    def push(self, id: int) -> str:
        """The text that may be shown now that `id` has come."""
        return self._stop.push(self._characters.push(id))

    def finish(self) -> str:
        """The rest, once no id can come."""
        if self.stopped:
            return ""
        shown = self._stop.push(self._characters.flush())
        return shown if self.stopped else shown + self._stop.flush()
