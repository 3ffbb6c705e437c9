"""What is forgotten from: the ledger, the stores, and the files of a data folder.

Knows nothing of what is forgotten or why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ..memory.base import Memory
from ..memory.home import Home
from ..memory.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Everything that one process has open of a data folder.

    Args:
        following: held while a store follows the ledger.
        read_only: another process may be writing; nothing is to be changed.
        outside: places beyond the data folder that stores keep things in, as a person knows them.
    """

    ledger: Ledger
    memories: Sequence[Memory]
    home: Home
    following: AbstractContextManager[Any]
    read_only: bool = False
    outside: Sequence[str] = ()

    @property
    def stores(self) -> dict[str, Memory]:
        """The memories by name."""
        return {memory.name: memory for memory in self.memories}
