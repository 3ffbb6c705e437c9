"""A gate of keys: a prompt is about what lies nearest to it among the prompts that were given.

Cosine of whitened features, the best over the prompt's sentences and over an entry's own prompts.
Two things veto, and open nothing by themselves: the entry's subject is not in the prompt (the same
relation of somebody else), or one of the entry's `outside` prompts is nearer (another relation of
the same subject). Of several entries about one subject, the one that says the most similar thing
of it opens: they are compared without the subject's words, which weigh more than all others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Entry, Features, Verdict

NAMED = 0.75
"""Share of a subject's words that a prompt has to have."""

_SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\n+")
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<!^)\b(?!I\b)[A-Z]\w*")


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of an entry: features, of length 1, of its prompts.

    Args:
        inside: [P, D].
        outside: [Q, D]; Q may be 0.
        said: [P, D], of those inside without the subject's words.
    """

    inside: Tensor
    outside: Tensor
    said: Tensor


class KeyGate:
    """See the module.

    Args:
        features: what a prompt looks like.
        threshold: least cosine, of an entry that names its subject.
        strict: least cosine of one that does not, and whose prompt has no names either.
    """

    def __init__(self, features: Features, *, threshold: float, strict: float) -> None:
        self._features = features
        self._least, self._strict = threshold, strict
        self._entries: tuple[Entry, ...] = ()
        self._subjects: tuple[str, ...] = ()
        self._said: tuple[Tensor, ...] = ()
        self._latest: tuple[tuple[str, ...], tuple[Tensor, Tensor]] | None = None
        self._inside = _Points(())
        self._outside = _Points(())

    def fit(self, entries: Sequence[Entry], keys: Sequence[Key] | None = None) -> None:
        """Hold these entries and no others.

        Args:
            keys: what `key` made of each of them, where that is kept.
        """
        found = [self.key(entry) for entry in entries] if keys is None else keys
        self._entries = tuple(entries)
        self._subjects = tuple(subject_of(entry) for entry in entries)
        self._said = tuple(key.said for key in found)
        self._latest = None
        self._inside = _Points([key.inside for key in found])
        self._outside = _Points([key.outside for key in found])

    def key(self, entry: Entry) -> Key:
        """What is to be kept of an entry; depends on it alone."""
        subject = subject_of(entry)
        inside = self._unit(entry.inside)
        return Key(
            inside=inside,
            outside=self._unit(entry.outside) if entry.outside else inside[:0],
            said=self._unit([_without(subject, prompt) for prompt in entry.inside]),
        )

    def _unit(self, texts: Sequence[str]) -> Tensor:
        return normalize(self._features(texts), dim=-1)

    @property
    def thresholds(self) -> Tensor:
        """[E]: the cosine above which an entry opens."""
        return torch.tensor([self._threshold(subject) for subject in self._subjects])

    def score(self, prompts: Sequence[str]) -> Tensor:
        """[N, E] cosines; -inf where something vetoes."""
        near, vetoed = self._near(prompts)
        return near.masked_fill(vetoed, -torch.inf)

    def explain(self, prompt: str, k: int = 3) -> list[Verdict]:
        """The entries that come nearest, by margin, the nearest first."""
        if not self._entries:
            return []
        near, vetoed = self._near([prompt])
        found = [
            Verdict(
                entry=entry.id,
                score=score,
                threshold=self._threshold(subject),
                vetoed=veto,
            )
            for entry, subject, score, veto in zip(
                self._entries, self._subjects, near[0].tolist(), vetoed[0].tolist(), strict=True
            )
        ]
        return sorted(found, key=lambda verdict: (verdict.vetoed, -verdict.margin))[:k]

    def _threshold(self, subject: str) -> float:
        return self._least if subject else self._strict

    def _near(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `_compared`; who is routed is explained, too, and need not be read twice."""
        latest = self._latest
        if latest is None or latest[0] != tuple(prompts):
            self._latest = latest = tuple(prompts), self._compared(prompts)
        return latest[1]

    def _compared(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[N, E]: the best cosine over a prompt's sentences and an entry's own prompts; and whether
        something vetoes."""
        parts = [[prompt, *sentences(prompt)] for prompt in prompts]
        features = self._unit([part for each in parts for part in each])
        sizes = [len(each) for each in parts]
        near = self._inside.best(features, sizes)
        vetoed = self._outside.best(features, sizes) >= near
        for row, prompt in enumerate(prompts):
            told = _words(prompt)
            for at, subject in enumerate(self._subjects):
                if subject and not named(subject, prompt, told):
                    vetoed[row, at] = True
            rivals = [
                at
                for at, subject in enumerate(self._subjects)
                if subject and not vetoed[row, at] and near[row, at] > self._threshold(subject)
            ]
            if len(rivals) > 1:
                vetoed[row, rivals] = True
                vetoed[row, self._most_alike(parts[row], rivals)] = False
        return near, vetoed

    def _most_alike(self, parts: Sequence[str], rivals: Sequence[int]) -> int:
        """Of several entries whose subject a prompt names, the one that says the most similar
        thing of it."""
        subjects = dict.fromkeys(self._subjects[at] for at in rivals)  # often one
        said = {
            subject: self._unit([_without(subject, part) for part in parts]) for subject in subjects
        }
        alike = [float((said[self._subjects[at]] @ self._said[at].T).max()) for at in rivals]
        return rivals[alike.index(max(alike))]


class _Points:
    """Points of many entries as one matrix."""

    def __init__(self, points: Sequence[Tensor]) -> None:
        self._count = len(points)
        self._all = torch.cat(list(points)) if points else torch.empty(0)
        owners = [torch.full((len(each),), at) for at, each in enumerate(points)]
        self._owner = torch.cat(owners) if owners else torch.empty(0, dtype=torch.long)

    def best(self, features: Tensor, sizes: Sequence[int]) -> Tensor:
        """[N, E]: the best cosine of the features [sum(sizes), D], which belong to N prompts, with
        an entry's points; -inf where it has none."""
        best = torch.full((len(features), self._count), -torch.inf)
        if len(self._all):
            cosines = features @ self._all.T
            best.scatter_reduce_(1, self._owner.expand(len(features), -1), cosines, "amax")
        return torch.stack([rows.amax(0) for rows in torch.split(best, list(sizes))])


def subject_of(entry: Entry) -> str:
    """Its subject; where none is given, the names in its first prompt, if any."""
    return entry.subject or " ".join(_NAME.findall(entry.inside[0]))


def named(subject: str, prompt: str, told: frozenset[str] | None = None) -> bool:
    """Whether a prompt names a subject by most of its words; in scripts without case, which put no
    spaces between words either, as it is written."""
    if subject.upper() == subject.lower() and subject in prompt:
        return True
    words = _words(subject)
    told = _words(prompt) if told is None else told
    return bool(words) and len(words & told) >= NAMED * len(words)


def _without(subject: str, text: str) -> str:
    """A text in which "it" stands for the subject's words."""
    words = "|".join(map(re.escape, _WORD.findall(subject)))
    cut = rf"\b(?:{words})\b(?:\W+(?:{words})\b)*"
    return re.sub(cut, "it", text, flags=re.IGNORECASE) if words else text


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def sentences(prompt: str) -> list[str]:
    """Its sentences, if it has several."""
    parts = [part.strip() for part in _SENTENCE.split(prompt)]
    parts = [part for part in parts if len(part) > 3]
    return parts if len(parts) > 1 else []
