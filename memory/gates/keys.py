"""A gate of keys: a prompt is about what lies nearest to it among the prompts that were given.

Cosine of whitened features, the best over the prompt's sentences and over an entry's own prompts.
The entry's subject, where it is known, has to be in the prompt: it vetoes near misses (the same
relation of somebody else), and never opens anything by itself.
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


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of an entry.

    Args:
        points: [P, D], features of its own prompts, of length 1.
        outside: the best cosine among its `outside` prompts; -1 if there are none.
    """

    points: Tensor
    outside: float = -1.0


class KeyGate:
    """See the module.

    Args:
        features: what a prompt looks like.
        threshold: least cosine.
        margin: how far the threshold stays above what the entry's own `outside` prompts score.
    """

    def __init__(self, features: Features, *, threshold: float, margin: float) -> None:
        self._features = features
        self._least, self._margin = threshold, margin
        self._entries: tuple[Entry, ...] = ()
        self._keys: list[Key] = []
        self._points = torch.empty(0)
        self._owner = torch.empty(0, dtype=torch.long)

    def fit(self, entries: Sequence[Entry], keys: Sequence[Key] | None = None) -> None:
        """Hold these entries and no others.

        Args:
            keys: what `key` made of each of them, where that is kept.
        """
        self._entries = tuple(entries)
        self._keys = list(map(self.key, entries) if keys is None else keys)
        if self._keys:
            points = [key.points for key in self._keys]
            self._points = torch.cat(points)
            self._owner = torch.cat(
                [torch.full((len(each),), at) for at, each in enumerate(points)]
            )

    def key(self, entry: Entry) -> Key:
        """What is to be kept of an entry; depends on it alone."""
        points = normalize(self._features(entry.inside), dim=-1)
        if not entry.outside:
            return Key(points)
        outside = normalize(self._features(entry.outside), dim=-1)
        return Key(points, float((outside @ points.T).max()))

    @property
    def thresholds(self) -> Tensor:
        """[E]: the cosine above which an entry opens."""
        return torch.tensor([self._threshold(key) for key in self._keys])

    def score(self, prompts: Sequence[str]) -> Tensor:
        """[N, E] cosines; -inf where an entry's subject is missing."""
        near = self._near(prompts)
        for row, prompt in enumerate(prompts):
            told = _words(prompt)
            for at, entry in enumerate(self._entries):
                if entry.subject and not named(entry.subject, prompt, told):
                    near[row, at] = -torch.inf
        return near

    def explain(self, prompt: str, k: int = 3) -> list[Verdict]:
        """The entries that come nearest, by margin, the nearest first."""
        if not self._entries:
            return []
        told = _words(prompt)
        found = [
            Verdict(
                entry=entry.id,
                score=float(score),
                threshold=self._threshold(key),
                vetoed=bool(entry.subject) and not named(str(entry.subject), prompt, told),
            )
            for entry, key, score in zip(
                self._entries, self._keys, self._near([prompt])[0], strict=True
            )
        ]
        return sorted(found, key=lambda verdict: (verdict.vetoed, -verdict.margin))[:k]

    def _threshold(self, key: Key) -> float:
        return max(self._least, key.outside + self._margin)

    def _near(self, prompts: Sequence[str]) -> Tensor:
        """[N, E]: the best cosine over a prompt's sentences and an entry's own prompts."""
        parts = [[prompt, *_sentences(prompt)] for prompt in prompts]
        features = self._features([part for each in parts for part in each])
        cosines = normalize(features, dim=-1) @ self._points.T
        best = torch.full((len(features), len(self._entries)), -torch.inf)
        best.scatter_reduce_(1, self._owner.expand(len(features), -1), cosines, "amax")
        return torch.stack(
            [rows.amax(0) for rows in torch.split(best, [len(each) for each in parts])]
        )


def named(subject: str, prompt: str, told: frozenset[str] | None = None) -> bool:
    """Whether a prompt names a subject: as it is written, or by most of its words."""
    if subject.casefold() in prompt.casefold():
        return True
    words = _words(subject)
    told = _words(prompt) if told is None else told
    return bool(words) and len(words & told) >= NAMED * len(words)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _sentences(prompt: str) -> list[str]:
    """Its sentences, if it has several."""
    parts = [part.strip() for part in _SENTENCE.split(prompt)]
    parts = [part for part in parts if len(part) > 3]
    return parts if len(parts) > 1 else []
