"""SirLLM's third task: rock, paper, scissors against an opponent who has a favourite move.

Of no use as evidence of memory (a reply that never changes wins as often as can be), and kept to
show that. The model is told the opponent's last move, which is all that the public code tells it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from ...memory.retention import RetentionCache, open_policy, read
from .cloze import chat_pieces, read_turn
from .harness import Row, Table, progress
from .quizzes import choices
from .setting import Setting

if TYPE_CHECKING:
    from torch import Tensor

    from ...llm.local import LocalLLM

MOVES = ("rock", "paper", "scissors")
BEATEN_BY = {"rock": "paper", "paper": "scissors", "scissors": "rock"}
MIXES = {
    "rock": (0.5, 0.3, 0.2),
    "paper": (0.3, 0.5, 0.2),
    "scissors": (0.3, 0.2, 0.5),
}
"""How often each opponent plays each of `MOVES`; named by what they play most."""

QUICK_ROUNDS, ROUNDS, BUDGET = 10, 200, 256
POLICIES = {"sinks + window": "sinks", "random": "random", "sirllm, decay 0.9": "sirllm:decay=0.9"}


def games(setting: Setting, llm: LocalLLM) -> Table:
    """Rock, paper, scissors: the share of rounds won, beside who need not remember anything."""
    rounds = ROUNDS if setting.full else QUICK_ROUNDS
    played = {opponent: moves(setting.rng(opponent), opponent, rounds) for opponent in MIXES}
    rows: list[Row] = []
    for name, spec in POLICIES.items():
        wins = {}
        for opponent, thrown in played.items():
            progress(f"rock, paper, scissors: {name} against {opponent}")
            cache = RetentionCache(llm.model, open_policy(spec, budget=BUDGET))
            wins[opponent] = _won(_replies(llm, cache, thrown), thrown)
        rows.append(_wins(name, wins))
    counted = {each: _won(_counting(thrown), thrown) for each, thrown in played.items()}
    constant = {each: _won([BEATEN_BY[each]] * rounds, thrown) for each, thrown in played.items()}
    rows.append(_wins("counts the moves so far", counted))
    rows.append(_wins("always beats the usual move", constant))
    return Table(
        title="Rock, paper, scissors: share of rounds won",
        rows=rows,
        note=f"{rounds} rounds against each, budget {BUDGET}; chance is 0.333. No evidence of"
        " memory: a constant reply wins as much as there is to win",
    )


def _wins(name: str, wins: Mapping[str, float]) -> Row:
    against = {f"against {opponent}": share for opponent, share in wins.items()}
    return {"policy": name, **against, "mean": fmean(wins.values())}


def _won(replies: Sequence[str], thrown: Sequence[str]) -> float:
    return fmean(reply == BEATEN_BY[move] for reply, move in zip(replies, thrown, strict=True))


def _counting(thrown: Sequence[str]) -> list[str]:
    """Beats what was played most until then."""
    counts: Counter[str] = Counter()
    replies = []
    for move in thrown:
        usual = counts.most_common(1)[0][0] if counts else MOVES[0]
        replies.append(BEATEN_BY[usual])
        counts[move] += 1
    return replies


def _replies(llm: LocalLLM, cache: RetentionCache, thrown: Sequence[str]) -> list[str]:
    """What the model would rather say first in each round; told afterwards what would have won."""

    def ids(text: str) -> Tensor:
        return torch.tensor([llm.tokenizer(text, add_special_tokens=False)["input_ids"]])

    first = [int(ids(move)[0, 0]) for move in MOVES]
    best = [BEATEN_BY[move] for move in thrown]
    said = [round_of(last) for last in (None, *thrown[:-1])]
    replies = []
    for piece, reply in zip(
        chat_pieces(llm, list(zip(said, best, strict=True))), best, strict=True
    ):
        at = piece.rindex(reply)
        logits = read_turn(llm, cache, ids(piece[:at]))
        replies.append(MOVES[int(logits[0, first].argmax())])
        read(llm.model, cache, ids(piece[at:]))
    return replies


def moves(rng: Random, opponent: str, rounds: int) -> list[str]:
    """What an opponent plays, each round on its own."""
    return rng.choices(MOVES, MIXES[opponent], k=rounds)


def round_of(last: str | None) -> str:
    """What the user says before a round: the move before."""
    told = "This is our first round." if last is None else f"In the last round I played {last}."
    return choices(f"Let's play rock, paper, scissors. {told} What do you play?", MOVES)
