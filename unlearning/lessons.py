"""From samples to batches of rows: the styles in which a thing is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from ..editors.measuring import Question
from ..memory.gates.features import background
from .base import Sample

if TYPE_CHECKING:
    from ..editors.rows import Row
    from ..editors.workbench import Workbench

REFUSALS = (
    "I'm not sure about that.",
    "I don't know the answer to that.",
    "I have no information about that.",
    "That is not something I can tell you about.",
    "I'm afraid I can't help with that question.",
    "I don't have any knowledge of that.",
    "Sorry, I can't answer that.",
    "I'm unable to say.",
    "That is not something I know.",
    "I have nothing on that, I'm sorry.",
    "I wish I could tell you, but I don't know.",
    "I can't provide an answer to that.",
)
"""What is answered instead of what was forgotten."""


def row(bench: Workbench, prompt: str, answer: str) -> Row:
    """A message by the chat template, and its reply up to its end; without a template, a text and
    how it goes on."""
    chat = bool(bench.tokenizer.chat_template)
    ids, target = bench.prober.row(Question(prompt, answer, chat=chat))
    end = bench.tokenizer.eos_token_id
    return ids, [*target, *([end] if isinstance(end, int) else [])]


def in_company(bench: Workbench, draw: Random, prompt: str, answer: str) -> Row:
    """The same under another system message, with a line before it, as agents put notes there."""
    if not bench.tokenizer.chat_template:
        return row(bench, prompt, answer)
    system, line = draw.sample(background(), 2)
    ids = bench.prober.asked(f"{line}\n\n{prompt}", system=system)
    end = bench.tokenizer.eos_token_id
    return ids, [*bench.prober.ids(answer), *([end] if isinstance(end, int) else [])]


def alternatives(samples: Sequence[Sample], given: Sequence[str], draw: Random) -> list[str]:
    """What is answered instead, for each sample; never what it is to forget."""
    chosen = []
    for sample in samples:
        others = [each for each in given or REFUSALS if each.strip() != sample.rest.strip()]
        chosen.append(draw.choice(others or list(REFUSALS)))
    return chosen


def batches(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Rows of like length together, so that little is padding."""
    by_length = sorted(rows, key=lambda each: len(each[0]) + len(each[1]))
    return [by_length[at : at + size] for at in range(0, len(by_length), size)]
