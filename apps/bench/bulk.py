"""Records by the hundred thousand, whose vectors cost next to nothing to make.

Each text is two sentences out of a few thousand, which are embedded once; its encoding is put
together from theirs. So an index sees texts and vectors as varied as real ones, and a bench of its
own speed does not wait for hours on a model. Queries are embedded as ever.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np

from ...memory.record import Record, Scope
from ...memory.vectors import MAX_TOKENS, Embedder, Encoding, Vectors, unit
from .dialogue import chronicle, read_gzip
from .setting import Setting

SENTENCES = 4000
TURNS_PER_SESSION = 10
START = datetime(2024, 1, 1, tzinfo=UTC)

_MARK = re.compile(r" #(\d+)\.(\d+)$")


class Recombined:
    """An embedder that has the encodings of two-sentence texts at hand, and asks another one for
    all others. `seconds` is what that took."""

    def __init__(self, embedder: Embedder, sentences: Sequence[str]) -> None:
        self.name, self.dimension = embedder.name, embedder.dimension
        self.seconds = 0.0
        self._embedder = embedder
        self._sentences = sentences
        self._known = embedder.encode(sentences)

    def text(self, rng: Random) -> str:
        """A new text."""
        first, second = rng.sample(range(len(self._sentences)), 2)
        return f"{self._sentences[first]} {self._sentences[second]} #{first}.{second}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, D] float32, rows of length 1."""
        return np.stack([each.vector for each in self.encode(texts)])

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Of each text."""
        made = [self._made(text) for text in texts]
        asked = [text for text, encoding in zip(texts, made, strict=True) if encoding is None]
        started = time.perf_counter()
        rest = iter(self._embedder.encode(asked) if asked else ())
        self.seconds += time.perf_counter() - started
        return [encoding or next(rest) for encoding in made]

    def _made(self, text: str) -> Encoding | None:
        found = _MARK.search(text)
        if found is None:
            return None
        first, second = (self._known[int(number)] for number in found.groups())
        tokens = np.concatenate([first.tokens, second.tokens])[:MAX_TOKENS]
        return Encoding(unit((first.vector + second.vector)[None])[0], tokens)


def sentences(setting: Setting) -> list[str]:
    """Of real talk where there is data (DailyDialog, Li et al. 2017), of a chronicle otherwise."""
    rng = setting.rng("sentences")
    if setting.data is None:
        text = chronicle(rng, sections=198)
        return sorted(set(re.split(r"(?<=[.!?])\s+", text)))[:SENTENCES]
    lines = read_gzip(setting.data / "dailydialog" / "dailydialog.jsonl.gz").splitlines()
    said = {turn for line in lines for turn in json.loads(line)["turns"] if len(turn) > 15}
    return rng.sample(sorted(said), min(SENTENCES, len(said)))


def records(embedder: Recombined, count: int, scope: Scope, rng: Random) -> Iterator[Record]:
    """`count` records: questions and answers in sessions of ten turns, a minute apart."""
    for turn in range(count // 2):
        session = f"s{turn // TURNS_PER_SESSION}"
        where = Scope(scope.tenant, scope.user, scope.agent, session)
        when = START + timedelta(minutes=turn)
        said = Record(text=embedder.text(rng), scope=where, created=when, valid_from=when)
        yield said
        yield Record(
            text=embedder.text(rng),
            scope=where,
            role="assistant",
            source="assistant",
            parents=(said.id,),
            created=when,
            valid_from=when,
        )
