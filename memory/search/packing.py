"""Vectors as they are kept: small, and good for scoring.

Knows nothing of where they lie.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..vectors import Encoding


class Packed(NamedTuple):
    """An encoding as it is kept: the vector [D] in float16, and the signs of the word vectors
    [T, D / 8]."""

    vector: NDArray[np.float16]
    tokens: NDArray[np.uint8]

    @classmethod
    def of(cls, encoding: Encoding) -> Packed:
        """What is kept of an encoding."""
        return cls(encoding.vector.astype(np.float16), pack(encoding.tokens))


def pack(vectors: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The signs of vectors [..., D] as bits [..., D / 8]. Scores by the signs of one side lose a
    hundredth of the recall of those by floats, for a thirty-second of the room."""
    return np.packbits(vectors > 0, axis=-1)
