"""What became of edits: the model asked without them and with all that hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..memory.gates.base import Verdict
from .base import Answer, Learnt, Patch, Receipt
from .measuring import Question

if TYPE_CHECKING:
    from .workbench import Workbench

STAYS = 0.9
"""Share of an answer's tokens that have to stay the same for a prompt that must not move."""

FREE = 8
"""Tokens of what the model says by itself that must not move, where no answer is named."""


def receipts(
    bench: Workbench, method: Mapping[str, Any], learnt: Sequence[Learnt], patch: Patch | None
) -> list[Receipt]:
    """A receipt for each edit.

    Args:
        patch: of all edits that hold for the same user.
    """
    own = [Question(each.edit.prompt, each.edit.target) for each in learnt]
    before = bench.prober.answers(own)
    after = bench.prober.answers(own, patch)
    verdicts = patch.open([question.prompt for question in own]).verdicts if patch else ()
    made = []
    for at, each in enumerate(learnt):
        asked = [Question(prompt, each.edit.target) for prompt in each.edit.paraphrases]
        paraphrases = tuple(bench.prober.answers(asked, patch))
        locality = _staying(bench, each, patch)
        gate = verdicts[at] if verdicts else None
        closed = bool(verdicts) and (gate is None or gate.entry != each.id)
        made.append(
            Receipt(
                id=each.id,
                edit=each.edit,
                method=method,
                before=before[at],
                after=after[at],
                paraphrases=paraphrases,
                locality=locality,
                gate=gate,
                seconds=each.change.seconds,
                curve=each.change.curve,
                bytes=each.change.nbytes,
                advice=_advice(each, after[at], paraphrases, locality, gate, closed=closed),
            )
        )
    return made


def _staying(bench: Workbench, learnt: Learnt, patch: Patch | None) -> tuple[float, ...]:
    """For each prompt that must not move, the share of its answer's tokens that stay."""
    questions = [
        Question(prompt, answer or _own_answer(bench, prompt))
        for prompt, answer in learnt.edit.locality
    ]
    before = bench.prober.choices(questions)
    after = bench.prober.choices(questions, patch)
    return tuple(
        sum(old == new for old, new in zip(one, other, strict=True)) / len(one)
        for one, other in zip(before, after, strict=True)
    )


def _own_answer(bench: Workbench, prompt: str) -> str:
    """What the model goes on to say without any edit."""
    [answer] = bench.prober.answers([Question(prompt, " a" * FREE)])
    return answer.text or "."


def _advice(
    learnt: Learnt,
    after: Answer,
    paraphrases: Sequence[Answer],
    locality: Sequence[float],
    gate: Verdict | None,
    *,
    closed: bool,
) -> str:
    if closed:
        other = f", but for edit {gate.entry}" if gate else ""
        return (
            f"the gate does not open for the edit's own prompt{other}; undo the other edit, name"
            " the subject, or lower the gate's threshold"
        )
    if after.accuracy < 1:
        curve = learnt.change.curve
        lost = f" (loss {curve[-1]:.2f} after {len(curve)} steps)" if curve else ""
        return f"the model does not say the target yet{lost}; allow more steps or a higher rate"
    missed = sum(answer.accuracy < 1 for answer in paraphrases)
    if missed:
        return (
            f"{missed} of {len(paraphrases)} paraphrases are not answered with the target; lower"
            " the gate's threshold, or allow more steps"
        )
    moved = sum(share < STAYS for share in locality)
    if moved:
        return (
            f"{moved} of {len(locality)} answers that must not move have moved; raise the gate's"
            " threshold, name the subject, or undo the edit"
        )
    return ""
