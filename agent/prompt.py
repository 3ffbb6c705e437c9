"""From what the memories gave to the messages the model reads, within the model's window.

Remembered text is data: it stands inside a fence, labelled, and whatever in it looks like the
fence is defused. This module does not know where notes come from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from ..errors import ContextOverflow
from ..llm.base import LLM
from ..llm.places import Cache, Note, Prompt
from .request import Request

SYSTEM = "You are a helpful assistant with a memory."

RULE = (
    "These are notes of what the user told you before. Answer questions about the user from them."
)
"""Said only when there are notes. Of ten wordings and places tried on a 135M model, this one with
the notes in the user's message reads best of those that keep remembered text out of the system
prompt, where a planted instruction would carry more weight."""

LABELS: Mapping[str, str] = {
    "user": "the user said",
    "assistant": "you told the user",
    "document": "a document says",
    "tool": "a tool returned",
}

_FENCE = re.compile(r"<(/?)memory", re.IGNORECASE)


class PromptBuilder:
    """Places notes and turns around the user's message."""

    def __init__(self, llm: LLM, system: str | None = None) -> None:
        self._llm = llm
        self._system = SYSTEM if system is None else system

    def budget(self, request: Request, *, endless: bool = False) -> tuple[int, int]:
        """Tokens that memory may take, and that the whole prompt may: the window less room for a
        reply, without and with the bare prompt. With `endless`, the message may be of any length.

        Raises:
            ContextOverflow: the message alone is too long; nothing has been stored yet.
        """
        window = self._llm.context_window
        # No tokenizer makes fewer than one token of 64 bytes of text, and counting is not free.
        longest = 64 * window
        if len(request.message) > longest and not endless:
            raise _too_long(f"{len(request.message):,} characters", window)
        bare = self._llm.count_prompt_tokens(self._messages(request, (), ()))
        if bare >= window and not endless:
            raise _too_long(f"{bare:,} tokens with its prompt", window)
        reply = min(request.generation.max_tokens, window // 4)
        return max(0, window - bare - reply), max(bare, window - reply)

    def place(
        self, request: Request, prompts: Sequence[Prompt], room: int, cache: Cache | None = None
    ) -> tuple[list[BaseMessage], list[Note]]:
        """The prompt's messages, within `room` tokens, and the notes that found room, best first.

        Fence, labels and message frames cost tokens too, so the worst notes, then the oldest
        turns, give way until the whole prompt fits.

        A cache that holds the conversation stands for its turns: those that it has not read yet
        are placed, whatever their length, and the system message comes only into an empty one.
        """
        held = cache if cache is not None and cache.holds else None
        turns = [] if held else list(_turns(prompts))
        notes = _by_rank(prompts)
        while True:
            messages = self._messages(request, turns, notes, goes_on=bool(held and held.seen))
            if not (turns or notes) or self._llm.count_prompt_tokens(messages) <= room:
                return _with_turns(messages, held.turns) if held else messages, notes
            if notes:
                notes.pop()
            else:
                turns = turns[1:]

    def opening(self, cache: Cache) -> list[BaseMessage]:
        """What an empty cache reads before the turns that it has not read, and these."""
        system = [SystemMessage(self._system)] if self._system and not cache.seen else []
        return [*system, *cache.turns]

    def _messages(
        self,
        request: Request,
        turns: Sequence[BaseMessage],
        notes: Sequence[Note],
        *,
        goes_on: bool = False,
    ) -> list[BaseMessage]:
        system = self._system if request.instructions is None else request.instructions
        message = f"{splice(notes)}\n\n{request.message}" if notes else request.message
        if notes and goes_on:
            message = f"{RULE}\n{message}"
        elif notes:
            system = f"{system} {RULE}".strip()
        return [
            *([SystemMessage(system)] if system and not goes_on else []),
            *turns,
            *request.history,
            HumanMessage(message),
        ]


def _with_turns(messages: Sequence[BaseMessage], turns: Sequence[BaseMessage]) -> list[BaseMessage]:
    """`turns` before all messages but the system's."""
    first = sum(isinstance(message, SystemMessage) for message in messages[:1])
    return [*messages[:first], *turns, *messages[first:]]


def splice(notes: Sequence[Note]) -> str:
    """Notes, given best first, inside the fence: the best one last, as small models answer from
    what stands next to the question (containment 0.30 in order of time, 0.43 so)."""
    lines = "\n".join(
        f"- {LABELS.get(note.source, note.source)}: {defuse(inset(note.text))}"
        for note in reversed(notes)
    )
    return f"<memory>\n{lines}\n</memory>"


def inset(text: str) -> str:
    """`text` with every line after the first indented, so that none can pass for a note. What was
    said in several lines, a memory quotes itself; see `Note`."""
    first, *others = text.splitlines() or [""]
    return "\n".join([first, *(each if each[:2] == "  " else f"  > {each}" for each in others)])


def defuse(text: str) -> str:
    """`text` with whatever looks like the fence made harmless and still readable."""
    return _FENCE.sub(r"‹\1memory", text)


def _by_rank(prompts: Sequence[Prompt]) -> list[Note]:
    """All notes: the best of each memory, then the second best of each, and so on. Scores compare
    within one memory only."""
    ranks = max((len(prompt.notes) for prompt in prompts), default=0)
    return [p.notes[rank] for rank in range(ranks) for p in prompts if rank < len(p.notes)]


def _turns(prompts: Sequence[Prompt]) -> list[BaseMessage]:
    """The turns of all memories, each message once; ids are ULIDs and sort by time."""
    unique = {message.id: message for prompt in prompts for message in prompt.turns}
    return [unique[key] for key in sorted(unique, key=str)]


def _too_long(size: str, window: int) -> ContextOverflow:
    return ContextOverflow(
        f"the message has {size} and the model's window is {window:,} tokens; shorten it, or give"
        " it as a document with `palimpsest read`"
    )
