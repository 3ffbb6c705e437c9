"""TOFU's evaluation of one system on one model, and accuracy at multiple choice.

Questions are asked as messages, where the tokenizer has a chat template; answers are scored without
the token that ends a reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from statistics import fmean
from threading import Event
from typing import TYPE_CHECKING, Any

from ...unlearning.examining import Ask, Examiner, Reply
from ...unlearning.measures import (
    forget_quality,
    model_utility,
    probability_among,
    refuses,
    repetition,
    rouge_l_recall,
    truth_ratio,
    truthful,
    unsure,
)

if TYPE_CHECKING:
    from ...editors.base import Patch
    from ...editors.workbench import Workbench
    from .unlearn_material import Sample

LETTER = re.compile(r"\b(?i:answer is):? (?:\(([A-Ea-e])\)|([A-E])\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Means over the samples of a group; `ratios` of each, in order.

    Args:
        samples: how many were asked.
        probability: p(a|q)^{1/|a|}, of TOFU's authors; among the options, of real ones and facts.
        rouge: ROUGE-L recall of the greedy reply.
        ratios: truth ratio R of each sample that has wrong answers.
        unsure, truthful: min(R, 1/R), and max(0, 1 - R).
        strength: extraction strength.
        refusals: share of replies that refuse.
        repetition: share of 3-grams of words that stood in the reply before.
    """

    samples: int
    probability: float
    rouge: float
    ratios: tuple[float, ...]
    unsure: float
    truthful: float
    strength: float
    refusals: float
    repetition: float


def evaluate(
    bench: Workbench,
    patch: Patch | None,
    forget: Sequence[Sample],
    retained: Sequence[Sample],
    authors: Sequence[Sample],
    facts: Sequence[Sample],
    *,
    tokens: int = 64,
    sample: int | None = None,
    cancel: Event | None = None,
) -> dict[str, Any]:
    """Scores by group, as `Group` has them, and `utility`: the harmonic mean of nine.

    Args:
        tokens: of a reply at most; TOFU has 200.
        sample: so many of each group at most, evenly spread; None for all.

    Raises:
        Cancelled: the event was set.
    """
    examiner = Examiner(bench.model, bench.tokenizer, cancel)
    groups = {"forget": forget, "retained": retained, "authors": authors, "facts": facts}
    found = {
        name: score(examiner, patch, spread(some, sample), tokens, among=name in AMONG)
        for name, some in groups.items()
        if some
    }
    told = {name: asdict(group) for name, group in found.items()}
    kept = [found[name] for name in groups if name != "forget" and name in found]
    parts = [part for each in kept for part in (each.probability, each.rouge, each.truthful)]
    return {**told, "utility": model_utility(parts) if parts else None}


AMONG = ("authors", "facts")
"""Groups whose probability is that among the options."""


def score(
    examiner: Examiner, patch: Patch | None, samples: Sequence[Sample], tokens: int, *, among: bool
) -> Group:
    """One group."""
    asks = [
        Ask(each.question, (each.answer, each.reworded or each.answer, *each.wrong))
        for each in samples
    ]
    replies = examiner.ask(asks, patch, tokens)
    ratios = tuple(
        truth_ratio(reply.answers[1].nll, [wrong.nll for wrong in reply.answers[2:]])
        for reply in replies
        if len(reply.answers) > 2
    )
    texts = [reply.text for reply in replies]
    pairs = list(zip(texts, samples, strict=True))
    return Group(
        samples=len(samples),
        probability=fmean(_probability(reply, among=among) for reply in replies),
        rouge=fmean(rouge_l_recall(text, each.answer) for text, each in pairs),
        ratios=ratios,
        unsure=fmean(map(unsure, ratios)) if ratios else 0.0,
        truthful=fmean(map(truthful, ratios)) if ratios else 0.0,
        strength=fmean(reply.answers[0].strength for reply in replies),
        refusals=fmean(map(refuses, texts)),
        repetition=fmean(map(repetition, texts)),
    )


def recall(
    examiner: Examiner, patch: Patch | None, samples: Sequence[Sample], tokens: int
) -> float:
    """Mean ROUGE-L recall of greedy replies."""
    replies = examiner.ask([Ask(each.question) for each in samples], patch, tokens)
    pairs = zip(replies, samples, strict=True)
    return fmean(rouge_l_recall(reply.text, each.answer) for reply, each in pairs)


def quality(told: Mapping[str, Any], never_taught: Mapping[str, Any]) -> float:
    """Forget quality: of what `evaluate` says of a model, and of one never taught the forget set;
    asked for the same samples."""
    return forget_quality(told["forget"]["ratios"], never_taught["forget"]["ratios"])


def accuracy(
    bench: Workbench,
    patch: Patch | None,
    samples: Sequence[Sample],
    *,
    tokens: int = 12,
    sample: int | None = None,
    cancel: Event | None = None,
) -> dict[str, float]:
    """Of multiple choice: by the most probable of the options' answers (`likely`), and by what the
    model says (`said`), where no letter, or several, is wrong. `lettered` is the share of replies
    with one letter: gibberish has none, and would count as forgotten.

    Raises:
        Cancelled: the event was set.
    """
    some = spread(samples, sample)
    asks = [Ask(each.question, (each.answer, *each.wrong)) for each in some]
    replies = Examiner(bench.model, bench.tokenizer, cancel).ask(asks, patch, tokens)
    letters = [letter(reply.text) for reply in replies]
    return {
        "samples": float(len(some)),
        "likely": fmean(_first_is_likeliest(reply) for reply in replies),
        "said": fmean(
            found is not None and found == letter(each.answer)
            for found, each in zip(letters, some, strict=True)
        ),
        "lettered": fmean(found is not None for found in letters),
        "refusals": fmean(refuses(reply.text) for reply in replies),
    }


def letter(text: str) -> str | None:
    """The letter that a reply gives; None unless it is one."""
    found = {(bracketed or bare).upper() for bracketed, bare in LETTER.findall(text)}
    return found.pop() if len(found) == 1 else None


def translations() -> dict[str, dict[str, str]]:
    """Eight questions of TOFU's forget01 in other languages, by question and language; made for
    this project, for `Language(translations=...)`."""
    file = resources.files(__package__).joinpath("unlearn_translated.jsonl")
    records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {record.pop("question"): record for record in records}


def spread(samples: Sequence[Sample], most: int | None) -> list[Sample]:
    """At most so many, evenly spread; the same ones each time."""
    if most is None or len(samples) <= most:
        return list(samples)
    return [samples[at * len(samples) // most] for at in range(most)]


def _probability(reply: Reply, *, among: bool) -> float:
    own, _, *wrong = (each.probability for each in reply.answers)
    return probability_among(own, wrong) if among else own


def _first_is_likeliest(reply: Reply) -> bool:
    own, *others = (each.nll for each in reply.answers)
    return all(own < other for other in others)
