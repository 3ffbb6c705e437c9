"""A gate of sets: a prompt is about an entry if it belongs to the same set as the entry's prompts.

A scorer learns the set. Where the gate opens is calibrated without a single counterexample: by
scores that the entry's own prompts get from scorers that have not seen them, and by what sentences
about nothing in particular get. How far it opens is a weight from 0 to 1, exactly 0 below a floor,
so that a closed gate changes no bit of what lies behind it. Of a prompt of several sentences the
best counts, so that a story around a question does not hide it. A prompt that names others than the
entry's prompts do is not about it, however it is asked: see `names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from ...errors import ConfigError
from .base import Entry, Verdict
from .keys import named, sentences
from .names import about_others, marks_of
from .scorers.base import Scorer, State
from .scorers.folds import cross_fitted
from .scorers.fused import Fused
from .soft import REACH, mixture, soft

if TYPE_CHECKING:
    from torch import Tensor

NAMES = "names"
"""In a state: hashes of the names in an entry's prompts."""

SLACK = 0.5
"""Spreads by which the threshold is lower where names keep out what is about others."""

ALPHA = 0.05
"""Share of an entry's own prompts that may miss the threshold."""

GENERAL = 0.99
"""Share of the background that is to stay exactly closed."""

NAMED_OUTSIDE = 0.95
"""Share of the prompts named as outside that are to stay exactly closed."""

SHARPNESS = 8
"""Temperatures in the spread of an entry's own scores."""

FEW = 12
"""With fewer prompts, scores of those not seen say little."""

PART = 0.6
"""Where the threshold of so few lies, from what is to stay closed to their own scores."""

ODD = 1.5
"""Spreads below the middle at which a prompt is odd; see `calibrated`."""

WIDEST = 8
"""Spreads from what is to stay closed to the middle, at most: paraphrases vary more than questions
that were all asked in one way."""

NORMAL = 1.4826
"""Standard deviations of a Gaussian in the median of its absolute deviations."""

Weighting = Literal["soft", "mixture"]


class SetFeatures(Protocol):
    """Texts -> [N, L, D]; see `LayerFeatures`."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features of texts."""

    @property
    def background(self) -> Tensor:
        """[M, L, D]: of sentences about nothing in particular."""


@dataclass(frozen=True, slots=True)
class SetState:
    """What is kept of an entry; no text.

    Args:
        learnt: the scorer's state.
        numbers: `threshold` and `temperature`; what they come from: `own_mean`, `own_spread` and
            `own_edge` of the cross-fitted scores, `general_edge` of the background's,
            `outside_edge` where prompts were named as outside, `seen_mean` of scores by the scorer
            that has seen them, `prompts` how many; and how good it is: `separation`, the AUROC of
            own scores against the background, .5 if they cannot be told apart; `outside_separation`
            likewise; `own_open` and `general_open`, shares that open at all.
        scorer: which learnt it; None: the gate's own.
    """

    learnt: State
    numbers: Mapping[str, float]
    scorer: Scorer | None = None

    @property
    def threshold(self) -> float:
        """The score at which the gate is half open."""
        return self.numbers["threshold"]

    @property
    def temperature(self) -> float:
        """Score in which the weight's log odds rise by 1."""
        return self.numbers["temperature"]


class SetGate:
    """See the module.

    Args:
        features: what a prompt looks like.
        scorer: how a set is learnt.
        alpha: share of an entry's own prompts that may miss the threshold, within 0..0.5.
        weighting: `soft`, a sigmoid; `mixture`, as the O3 paper has it, which never closes.
    """

    def __init__(
        self,
        features: SetFeatures,
        scorer: Scorer | None = None,
        *,
        alpha: float = ALPHA,
        weighting: Weighting = "soft",
    ) -> None:
        if not 0 <= alpha <= 0.5:
            raise ConfigError(
                f"alpha={alpha} must lie within 0..0.5: the share of an entry's own prompts that"
                " may miss its threshold"
            )
        self.scorer = Fused() if scorer is None else scorer
        self._features, self._alpha, self._weighting = features, alpha, weighting
        self._entries: tuple[Entry, ...] = ()
        self._states: tuple[SetState, ...] = ()
        self._latest: tuple[tuple[str, ...], Tensor] | None = None

    def fit(self, entries: Sequence[Entry], states: Sequence[SetState] | None = None) -> None:
        """Hold these entries and no others.

        Args:
            states: what `learn` made of each of them, where that is kept; prompts may be gone.
        """
        found = [self.learn(entry) for entry in entries] if states is None else states
        if len(found) != len(entries):
            raise ConfigError(
                f"states holds {len(found)} states for {len(entries)} entries; give one for each"
            )
        self._entries, self._states, self._latest = tuple(entries), tuple(found), None

    def learn(self, entry: Entry) -> SetState:
        """What is to be kept of an entry; depends on it alone.

        Raises:
            ConfigError: it has no prompts inside.
        """
        if not entry.inside:
            raise ConfigError(f"entry {entry.id} has no prompts inside; give one or more")
        inside, general = self._features(entry.inside), self._features.background
        learnt = {**self.scorer.fit(inside, general), NAMES: marks_of(entry.inside)}
        made = SetState(learnt, {}, self.scorer)
        seen = self.scorer.score(learnt, inside)
        own = cross_fitted(self.scorer, inside, general) if len(inside) >= FEW else seen
        others = self.scorer.score(learnt, general)
        outside = self._scores(made, entry.outside) if entry.outside else None
        slack = SLACK if len(learnt[NAMES]) else 0.0
        return replace(made, numbers=calibrated(own, seen, others, outside, self._alpha, slack))

    @property
    def states(self) -> tuple[SetState, ...]:
        """Of the entries it holds."""
        return self._states

    @property
    def thresholds(self) -> Tensor:
        """[E]: the score at which an entry is half open."""
        return torch.tensor([state.threshold for state in self._states])

    def score(self, prompts: Sequence[str]) -> Tensor:
        """[N, E]: the best over a prompt and its sentences; -inf where the subject that an entry
        names is missing."""
        if self._latest is None or self._latest[0] != tuple(prompts):
            self._latest = tuple(prompts), self._compared(prompts)
        return self._latest[1]

    def weights(self, prompts: Sequence[str]) -> Tensor:
        """[N, E]: how far each prompt opens each entry, exactly 0 where it does not."""
        scores = self.score(prompts)
        columns = [self._weight(state, scores[:, at]) for at, state in enumerate(self._states)]
        return torch.stack(columns, dim=1) if columns else scores

    def explain(self, prompt: str, k: int = 3) -> list[Verdict]:
        """The entries that come nearest, by margin, the nearest first."""
        if not self._entries:
            return []
        scores = self.score([prompt])[0].tolist()
        found = [
            Verdict(
                entry=entry.id,
                score=score,
                threshold=state.threshold,
                vetoed=bool(entry.subject) and not named(entry.subject or "", prompt),
            )
            for entry, state, score in zip(self._entries, self._states, scores, strict=True)
        ]
        return sorted(found, key=lambda verdict: -verdict.margin)[:k]

    def overlap(self, state: SetState, prompts: Sequence[str]) -> float:
        """Share of another entry's prompts that open an entry."""
        scores = self._scores(state, prompts)
        return float((self._weight(state, scores) > 0).float().mean())

    def _weight(self, state: SetState, scores: Tensor) -> Tensor:
        return (mixture if self._weighting == "mixture" else soft)(scores, state.numbers)

    def _compared(self, prompts: Sequence[str]) -> Tensor:
        if not self._entries:
            return torch.empty(len(prompts), 0)
        features, parts, sizes = self._read(prompts)
        columns = [_best(self._told(state, features, parts), sizes) for state in self._states]
        scores = torch.stack(columns, dim=1)
        for at, entry in enumerate(self._entries):
            if entry.subject:
                missing = [not named(entry.subject, prompt) for prompt in prompts]
                scores[torch.tensor(missing), at] = -torch.inf
        return scores

    def _scores(self, state: SetState, prompts: Sequence[str]) -> Tensor:
        features, parts, sizes = self._read(prompts)
        return _best(self._told(state, features, parts), sizes)

    def _told(self, state: SetState, features: Tensor, parts: Sequence[str]) -> Tensor:
        """[n]: score of each part; -inf where it is about others."""
        scores = (state.scorer or self.scorer).score(state.learnt, features)
        others = [about_others(part, state.learnt[NAMES]) for part in parts]
        return scores.masked_fill(torch.tensor(others), -torch.inf)

    def _read(self, prompts: Sequence[str]) -> tuple[Tensor, list[str], list[int]]:
        """Of all prompts and their sentences features and texts, and how many each prompt has."""
        parts = [[prompt, *sentences(prompt)] for prompt in prompts]
        texts = [part for each in parts for part in each]
        return self._features(texts), texts, list(map(len, parts))


def _best(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """[N]: the best of each prompt's parts."""
    return torch.stack([part.max() for part in torch.split(scores, list(sizes))])


def calibrated(
    own: Tensor,
    seen: Tensor,
    general: Tensor,
    outside: Tensor | None,
    alpha: float,
    slack: float = 0.0,
) -> dict[str, float]:
    """Where a gate opens, and how well; see `SetState`.

    With fewer than `FEW` prompts scores by scorers that have not seen them say nothing: `own` is
    `seen`, and the threshold lies between their median and what is to stay closed, by `PART`.
    Paraphrases of a handful of prompts open then, other questions about the same hardly.

    Args:
        own, seen: [N], scores of the entry's prompts by scorers that have not seen them, or have.
        general: [M], of the background.
        outside: of prompts named as outside.
        slack: spreads by which the threshold is lower.
    """
    edge = float(general.quantile(GENERAL))
    closed = edge if outside is None else max(edge, float(outside.quantile(NAMED_OUTSIDE)))
    middle = float(own.median())
    if len(own) < FEW:
        least, spread = closed + PART * (middle - closed), max(middle - closed, 0.0) / 3
    else:
        # A few odd prompts must not open the gate for all: asked again, they are known anyway.
        spread = min(float(own.std()), float((own - middle).abs().median()) * NORMAL)
        spread = max(spread, (middle - closed) / WIDEST)
        least = max(float(own.quantile(alpha)), middle - ODD * spread)
        least = min(least, float(seen.quantile(alpha))) - slack * spread
    temperature = max(spread, 1e-3) / SHARPNESS
    numbers = {
        # The floor of the weight, too, lies above what is to stay closed.
        "threshold": max(least, closed + REACH * temperature),
        "temperature": temperature,
        "own_mean": float(own.mean()),
        "own_spread": spread,
        "own_edge": least,
        "seen_mean": float(seen.mean()),
        "general_edge": edge,
        "separation": above(own, general),
        "prompts": float(len(own)),
    }
    if outside is not None:
        numbers |= {"outside_edge": closed, "outside_separation": above(own, outside)}
    for name, scores in (("own_open", own), ("general_open", general)):
        numbers[name] = float((soft(scores, numbers) > 0).float().mean())
    return numbers


def above(inside: Tensor, outside: Tensor) -> float:
    """AUROC: how often one of [N] lies above one of [M]; ties count half."""
    ahead = (inside[:, None] > outside).float() + 0.5 * (inside[:, None] == outside).float()
    return float(ahead.mean())
