"""The contract of a scorer: what it learns of a set of prompts is tensors, and nothing else.

A scorer sees features only, [N, L, D] for N prompts at L layers, standardised by those of sentences
about nothing in particular. So the texts can be dropped and the gate goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""What was learnt of a set; on the CPU, float32."""


class Scorer(Protocol):
    """A frozen dataclass of hyper-parameters. Deterministic: equal features, equal state."""

    name: ClassVar[str]

    def fit(self, inside: Tensor, background: Tensor) -> State:
        """Learn a set.

        Args:
            inside: [N, L, D], features of its prompts; N is at least 1.
            background: [M, L, D], of sentences about nothing in particular.
        """

    def score(self, state: State, features: Tensor) -> Tensor:
        """[n]: how surely each of [n, L, D] belongs to the set; higher is surer."""


def nested(name: str, state: State) -> dict[str, Tensor]:
    """What a part learnt, as it lies in the whole's state."""
    return {f"{name}.{key}": value for key, value in state.items()}


def part_of(state: State, name: str) -> dict[str, Tensor]:
    """What a part of that name learnt."""
    start = f"{name}."
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
