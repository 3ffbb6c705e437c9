"""How edits are scored: as the field does it, and by what the model says by itself.

Reliability, generality and locality are those of WISE (section 4.1) as its code takes them: teacher
forcing, the share of a target's tokens that are the most likely ones; for locality the share that
are the same as before. All after the last edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...editors.measuring import Question
from .edit_material import Fact, Window
from .edit_systems import Applied, System
from .points import Points

if TYPE_CHECKING:
    from ...editors.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What became of some facts, each list in their order; lists are empty where a measure does
    not apply.

    Args:
        rel, gen, loc: shares of tokens; see the module.
        said, said_otherwise: whether the model says the target by itself, asked by the edit's own
            prompt and by its paraphrase.
        routed, routed_otherwise: whether the gate picks the fact's own edit.
        opened: whether the gate opens for the prompt that must not move.
        nll, sure: of targets that are texts: mean nats of a token; and the share of the tokens of
            another text on the same thing that have p > 0.8.
        seconds: of learning each.
        nbytes: kept for all facts of a window, the mean over windows.
    """

    rel: list[float] = field(default_factory=list)
    gen: list[float] = field(default_factory=list)
    loc: list[float] = field(default_factory=list)
    said: list[bool] = field(default_factory=list)
    said_otherwise: list[bool] = field(default_factory=list)
    routed: list[bool] = field(default_factory=list)
    routed_otherwise: list[bool] = field(default_factory=list)
    opened: list[bool] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    sure: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    nbytes: float = 0.0

    @classmethod
    def together(cls, parts: Sequence[Scores]) -> Scores:
        """Those of several windows as one."""
        lists = {
            name: [value for part in parts for value in getattr(part, name)]
            for name in cls.__dataclass_fields__
            if name != "nbytes"
        }
        return cls(**lists, nbytes=sum(part.nbytes for part in parts) / len(parts))


Score = Callable[[Sequence[Fact], Applied], Scores]
"""Asks for some facts that a system has taken in."""


class Judge:
    """Scores windows with a model of its own; what the model chose before edits is computed
    once."""

    def __init__(self, bench: Workbench) -> None:
        self._prober = bench.prober
        self._before: dict[Question, tuple[int, ...]] = {}

    def score(self, facts: Sequence[Fact], applied: Applied) -> Scores:
        """Ask for each fact, after all were edited."""
        own = [Question(applied.ask(fact.edit.prompt), fact.edit.target) for fact in facts]
        others = [Question(applied.ask(fact.paraphrase), fact.edit.target) for fact in facts]
        elsewhere = [Question(*fact.elsewhere) for fact in facts]
        after = [Question(applied.ask(each.prompt), each.target) for each in elsewhere]
        rel = self._prober.answers(own, applied.patch)
        gen = self._prober.answers(others, applied.patch)
        chosen = self._prober.choices(after, applied.patch)
        return Scores(
            rel=[answer.accuracy for answer in rel],
            gen=[answer.accuracy for answer in gen],
            loc=[same(old, new) for old, new in zip(self.before(elsewhere), chosen, strict=True)],
            said=[says(a.text, q.target) for a, q in zip(rel, own, strict=True)],
            said_otherwise=[says(a.text, q.target) for a, q in zip(gen, others, strict=True)],
            routed=_routed(applied, own),
            routed_otherwise=_routed(applied, others),
            opened=[verdict is not None for verdict in _verdicts(applied, after)],
            seconds=list(applied.seconds),
            nbytes=applied.nbytes,
        )

    def before(self, questions: Sequence[Question]) -> list[tuple[int, ...]]:
        """The most likely tokens without any edit."""
        new = [question for question in questions if question not in self._before]
        self._before.update(zip(new, self._prober.choices(new), strict=True))
        return [self._before[question] for question in questions]


def same(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of tokens that are equal."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def says(text: str, target: str) -> bool:
    """Exact match of a reply of as many tokens as the target has, in any case."""
    return " ".join(text.casefold().split()) == " ".join(target.casefold().split())


def _verdicts(applied: Applied, questions: Sequence[Question]) -> Iterable[Any]:
    if applied.patch is None:
        return ()
    return applied.patch.open([question.prompt for question in questions]).verdicts


def _routed(applied: Applied, questions: Sequence[Question]) -> list[bool]:
    return [
        verdict is not None and verdict.entry == id
        for verdict, id in zip(_verdicts(applied, questions), applied.ids, strict=False)
    ]


def sequential(
    system: System,
    windows: Mapping[int, Sequence[Window]],
    score: Score,
    points: Points,
    about: Mapping[str, Any],
    told: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[int, Scores]]:
    """For each number of edits the scores after the last of them, over its windows.

    Args:
        windows: by the number of edits in each.
        about: the model and the material, for `points`.
        told: called with what is being measured.
    """
    with system.opened() as take:
        for size, some in windows.items():
            told(f"{system.name}: {len(some)} x {size} edits")
            settings = {
                **about,
                "system": system.name,
                "settings": dict(system.settings),
                "edits": size,
                "windows": len(some),
            }
            yield (
                size,
                Scores(
                    **points.get(
                        settings,
                        lambda some=some: asdict(  # type: ignore[misc]
                            Scores.together([score(window.facts, take(window)) for window in some])
                        ),
                    )
                ),
            )
