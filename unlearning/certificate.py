"""What attacks found of a model that is to have forgotten something: numbers and names, no texts.

A certificate is evidence, no proof. It tells what was tried, on how many samples, and how much came
back before and after; and what was not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from statistics import fmean
from threading import Event
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import Cancelled, InputError
from .attacks.base import Attack, Leak, Target
from .attacks.registry import DEFAULT, THOROUGH
from .examining import Ask, Examiner
from .measures import refuses, repetition, rouge_l_recall
from .neutral import NEUTRAL

if TYPE_CHECKING:
    from ..editors.base import Patch, Progress
    from ..editors.workbench import Workbench
    from .base import Request, Sample

T = TypeVar("T")

ALWAYS_UNCHECKED = ("whoever has the weights and takes the patch off",)
"""What no question to the model can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one attack found.

    Args:
        attack: its name.
        yardstick: what `before` and `after` are measured in; higher is worse.
        before, after: the leak without the patch, and with it.
        limit: the leak up to which it was stood.
        samples: on how many.
        numbers: of its parts, after.
        against: whom the samples were told from, where it matters.
        fair: False where one who never knew may exceed the limit, so that it is told, not judged.
        remedy: what to do if it was not stood.
    """

    attack: str
    yardstick: str
    before: float
    after: float
    limit: float
    samples: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    fair: bool = True
    remedy: str = ""

    @property
    def stood(self) -> bool:
        """Whether no more came back than the limit, as far as that can be judged."""
        return not self.fair or self.after <= self.limit

    @classmethod
    def of(cls, attack: Attack, before: Leak, after: Leak) -> Self:
        """What an attack found without a patch and with it."""
        return cls(
            attack=attack.name,
            yardstick=attack.yardstick,
            before=before.leak,
            after=after.leak,
            limit=attack.limit,
            samples=after.samples,
            numbers=dict(after.numbers),
            against=after.against,
            fair=after.fair,
            remedy=attack.remedy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """See the module.

    Args:
        findings: one for each attack that was made.
        before, after: of the samples asked as they are: `recall` (ROUGE-L), `probability` (of the
            answer, normalised by length), `strength` (extraction), `refusals` and `repetition`
            (shares: gibberish counts as forgotten by the other measures).
        kept: of what should not move. `identical`: share of neutral questions whose logits are the
            same bits; `same_token`: whose most likely first token is the same; `divergence`: mean
            KL of the first token in nats; `recall_before` and `recall_after` of retained samples.
        unchecked: what was not tried.
        samples, of: how many were drawn, of how many.
        seconds: what it took.
    """

    findings: tuple[Finding, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    kept: Mapping[str, float]
    unchecked: tuple[str, ...]
    samples: int
    of: int
    seconds: float = 0.0

    @property
    def stood(self) -> bool:
        """Whether every attack was."""
        return all(each.stood for each in self.findings)

    @property
    def advice(self) -> tuple[str, ...]:
        """For each attack that was not stood one sentence: what to do."""
        return tuple(
            f"{each.attack}: {each.yardstick} {each.after:.2f} is over {each.limit:.2f};"
            f" {each.remedy}."
            for each in self.findings
            if not each.stood
        )

    def plain(self) -> dict[str, Any]:
        """As JSON has it, with what follows from the numbers beside them."""
        told = asdict(self)
        told["findings"] = [
            asdict(each) | {"numbers": dict(each.numbers), "stood": each.stood}
            for each in self.findings
        ]
        return told | {"unchecked": list(self.unchecked), "stood": self.stood}

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Self:
        """The certificate that `plain` tells.

        Raises:
            InputError: it is of another form.
        """
        try:
            given = {name: value for name, value in told.items() if name != "stood"}
            findings = [
                {name: value for name, value in each.items() if name != "stood"}
                for each in given.pop("findings")
            ]
            given["unchecked"] = tuple(given["unchecked"])
            return cls(findings=tuple(Finding(**each) for each in findings), **given)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"told={told!r:.80} is no certificate: {error!r}") from error


def certify(
    bench: Workbench,
    patch: Patch,
    request: Request,
    *,
    strangers: Sequence[Sample] = (),
    retain: Sequence[Sample] = (),
    attacks: Sequence[Attack] = DEFAULT,
    thorough: bool = False,
    sample: int = 8,
    progress: Progress = lambda done, expected: None,
    cancel: Event | None = None,
) -> Certificate:
    """Attack a patch that is to have made the model forget a request.

    Args:
        strangers: samples of the same kind that were never taught.
        retain: samples that must be known as before.
        thorough: attacks that train, or round weights, as well; they take minutes.
        sample: how many of the request's samples are attacked; drawn by its own seed.

    Raises:
        Cancelled: the event was set; nothing is kept.
    """
    began = time.perf_counter()
    cancel = cancel or Event()
    chosen = drawn(request, sample)
    target = Target(
        bench=bench, patch=patch, samples=chosen, strangers=tuple(strangers), cancel=cancel
    )
    asked = [*attacks, *THOROUGH] if thorough else list(attacks)
    made = [each for each in asked if len(chosen) >= each.least]
    steps = _Steps(2 * len(made) + 3, progress, cancel)
    without = Target(
        bench=bench, patch=None, samples=chosen, strangers=target.strangers, cancel=cancel
    )
    before = steps.take(lambda: _asked(without, request.alternatives))
    after = steps.take(lambda: _asked(target, request.alternatives))
    kept = steps.take(lambda: _kept(target, retain[:sample]))
    findings = tuple(
        Finding.of(
            each,
            steps.take(lambda each=each: each.run(without)),  # type: ignore[misc]
            steps.take(lambda each=each: each.run(target)),  # type: ignore[misc]
        )
        for each in made
    )
    return Certificate(
        findings=findings,
        before=before,
        after=after,
        kept=kept,
        unchecked=_unchecked(made, chosen, request, strangers),
        samples=len(chosen),
        of=len(request.samples),
        seconds=round(time.perf_counter() - began, 1),
    )


def drawn(request: Request, count: int) -> tuple[Sample, ...]:
    """So many of a request's samples at most, by its seed; in their order.

    Raises:
        InputError: less than one is asked for.
    """
    if count < 1:
        raise InputError(f"sample={count} must be at least 1, to have something to attack")
    everyone = range(len(request.samples))
    some = Random(request.seed).sample(everyone, min(count, len(everyone)))
    return tuple(request.samples[at] for at in sorted(some))


class _Steps:
    """Tells progress, and ends between steps; within one, the examiner does."""

    def __init__(self, expected: int, progress: Progress, cancel: Event) -> None:
        self._done, self._expected = 0, expected
        self._progress, self._cancel = progress, cancel

    def take(self, step: Callable[[], T]) -> T:
        if self._cancel.is_set():
            raise Cancelled("the certificate was cancelled; nothing of it was kept")
        self._progress(self._done, self._expected)
        found = step()
        self._done += 1
        self._progress(self._done, self._expected)
        return found


def _asked(target: Target, alternatives: Sequence[str]) -> dict[str, float]:
    asks = [Ask(each.prompt, (each.rest,)) for each in target.samples]
    replies = target.examiner.ask(asks, target.patch, target.tokens)
    pairs = list(zip(replies, target.samples, strict=True))
    return {
        "recall": fmean(rouge_l_recall(reply.text, each.rest) for reply, each in pairs),
        "probability": fmean(reply.answers[0].probability for reply in replies),
        "strength": fmean(reply.answers[0].strength for reply in replies),
        "refusals": fmean(refuses(reply.text, alternatives) for reply in replies),
        "repetition": fmean(repetition(reply.text) for reply in replies),
    }


def _kept(target: Target, retain: Sequence[Sample]) -> dict[str, float]:
    examiner = target.examiner
    old, new = examiner.logits(NEUTRAL), examiner.logits(NEUTRAL, target.patch)
    logs, moved = old.float().log_softmax(-1), new.float().log_softmax(-1)
    found = {
        "neutral": float(len(NEUTRAL)),
        "identical": fmean((old == new).all(-1).tolist()),
        "same_token": fmean((old.argmax(-1) == new.argmax(-1)).tolist()),
        "divergence": float((logs.exp() * (logs - moved)).sum(-1).mean()),
    }
    if retain:
        found["recall_before"] = _recall(examiner, target, retain, None)
        found["recall_after"] = _recall(examiner, target, retain, target.patch)
    return found


def _recall(
    examiner: Examiner, target: Target, samples: Sequence[Sample], patch: Patch | None
) -> float:
    replies = examiner.ask([Ask(each.prompt) for each in samples], patch, target.tokens)
    pairs = zip(replies, samples, strict=True)
    return fmean(rouge_l_recall(reply.text, each.rest) for reply, each in pairs)


def _unchecked(
    made: Sequence[Attack],
    chosen: Sequence[Sample],
    request: Request,
    strangers: Sequence[Sample],
) -> tuple[str, ...]:
    names = {each.name for each in made}
    possible = [*(each.name for each in (*DEFAULT, *THOROUGH)), "backflow"]
    found = [name for name in possible if name not in names]
    if len(chosen) < len(request.samples):
        found.append(f"{len(request.samples) - len(chosen)} other samples of the request")
    if "membership" in names and not strangers:
        found.append("membership against samples of the same kind that were never taught")
    return (*found, *ALWAYS_UNCHECKED)
