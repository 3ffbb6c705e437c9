"""A few blocks on the model's device, of the many in host memory: least recently used leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ....kernels.base import Bank


class Slots:
    """A bank of a fixed number of blocks, filled as they are asked for.

    A block is known by a number that no other block ever has, so forks may share the bank, if they
    take turns.

    Args:
        bank: [N, H, P, D] on the device, with lengths; what it holds is overwritten.

    Attributes:
        hits: blocks that were asked for and there.
        loads: blocks that had to be copied.
    """

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.hits = self.loads = 0
        self._slots: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def empty(cls, count: int, like: Tensor, device: torch.device) -> Slots:
        """Room for `count` blocks such as those of `like` [any, H, P, D]."""
        shape = (count, *like.shape[1:])
        keys = torch.zeros(shape, dtype=like.dtype, device=device)
        lengths = torch.zeros(count, dtype=torch.int32, device=device)
        return cls(Bank(keys, torch.zeros_like(keys), lengths))

    def take(self, blocks: Sequence[int], rows: Sequence[int], pool: Bank) -> list[int]:
        """Where each block lies now; at most as many as there are slots, none twice.

        Args:
            blocks: their numbers.
            rows: where each lies in `pool`, which is in host memory.
        """
        for block in blocks:
            if block in self._slots:
                self._slots.move_to_end(block)
        missing = [at for at, block in enumerate(blocks) if block not in self._slots]
        self.hits += len(blocks) - len(missing)
        self.loads += len(missing)
        for at in missing:
            full = len(self._slots) == len(self.bank.keys)
            slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
            self._slots[blocks[at]] = slot
        found = [self._slots[block] for block in blocks]
        if missing:
            try:
                self._copy([rows[at] for at in missing], [found[at] for at in missing], pool)
            except BaseException:
                self._slots.clear()  # some may hold half of a block
                raise
        return found

    def _copy(self, rows: list[int], slots: list[int], pool: Bank) -> None:
        assert self.bank.lengths is not None and pool.lengths is not None
        tables = (
            (self.bank.keys, pool.keys),
            (self.bank.values, pool.values),
            (self.bank.lengths, pool.lengths),
        )
        source = torch.tensor(rows)
        for bank, host in tables:
            bank[torch.tensor(slots, device=bank.device)] = host[source].to(bank.device)

    @property
    def nbytes(self) -> int:
        """Of all slots."""
        return self.bank.keys.nbytes + self.bank.values.nbytes
