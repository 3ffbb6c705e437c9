"""Whom a set of prompts is about, as hashes: a prompt about somebody else does not belong to it.

Other people are asked about in the same words, and what a model makes of the words alone does not
tell them apart. A prompt without any name tells nothing, and is not kept out. Hashes, so that no
name stands in a file; who guesses one can still check the guess.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"(?<![.!?:;\n\"'(] )(?<!^)(?<![\w'-])(?!I\b)[A-Z][\w'-]+")
_PLAIN = re.compile(r"(?<![\w'-])[a-z]")
"""A word that begins with a small letter."""


def names(text: str) -> frozenset[str]:
    """Words with a capital that no sentence begins with, in lower case, without a genitive's s. In
    a text whose words all have one, a capital tells nothing."""
    if not _PLAIN.search(text):
        return frozenset()
    return frozenset(
        part
        for word in _NAME.findall(text)
        for part in re.split(r"[-']", word.casefold())
        if len(part) > 1
    )


def marks_of(texts: Iterable[str]) -> Tensor:
    """[K], int64, ascending: hashes of all names in texts."""
    found = {_mark(name) for text in texts for name in names(text)}
    return torch.tensor(sorted(found), dtype=torch.long)


def about_others(text: str, known: Tensor) -> bool:
    """Whether a text has names, and none of them is known; nothing is known: False. One is enough,
    or names put beside the question would hide whom it is about."""
    said = names(text)
    if not said or not len(known):
        return False
    return not bool(torch.isin(torch.tensor([_mark(name) for name in said]), known).any())


def _mark(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
