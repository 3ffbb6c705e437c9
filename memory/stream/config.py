"""Every setting of the memory stream, with its default and its rule.

Knows nothing of what the settings do. The sizes suit a model of 135M parameters and 2048 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import ConfigError
from .controller import Gate, Judging
from .influence import AboutUser, Limits
from .keys import Keys
from .ranking import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig(Weights, Limits):
    """Sizes are tokens, scaled from the paper's (2500, 500, 800, 300) to a window of 2048.

    Args:
        budget: most that recall puts into a prompt, previous turns included.
        k: most items activated; 0 switches activation off.
        floor: an item that scores less than this share of the best is not activated; 0 is the
            paper's. A small model is led astray by every note that does not bear on the question.
        flash_turns: previous turns that are always there (flash memory).
        flash_raw: a previous turn longer than this stands as its summary, or else is cut.
        gate: whether memory is activated: "always"; "relevance", if anything bears on the message
            with a probability of `least`; "llm", by asking the model.
        least: probability below which nothing is relevant.
        reorganise: "controller", or "truncate" for the paper's ablation without it.
        judge: what decides between dropping, shortening and keeping an item when there is too much:
            "score" (relevance) or "llm" (the paper's two questions).
        judge_above: only items longer than this are judged; 0 judges all, as the released code.
        summarise_above: an item is summarised if the prompt for it is longer than this.
        summary_tokens: most tokens of a summary.
        keys: what finds an item. "paper": the text of both sides, and its summary. "all": each side
            by itself, as a long reply drowns a short statement, and the summary.
        reranker: folder or name of a cross-encoder that reads the best candidates again; "" for
            none.
    """

    budget: int = 768
    k: int = 4
    floor: float = 0.6
    flash_turns: int = 1
    flash_raw: int = 192
    gate: Gate = "relevance"
    least: float = 0.05
    reorganise: Literal["controller", "truncate"] = "controller"
    judge: Judging = "score"
    judge_above: int = 256
    summarise_above: int = 192
    summary_tokens: int = 96
    keys: Keys = "all"
    reranker: str = ""

    def __post_init__(self) -> None:
        for name, choices in (
            ("about_user", get_args(AboutUser)),
            ("gate", get_args(Gate)),
            ("judge", get_args(Judging)),
            ("keys", get_args(Keys)),
            ("reorganise", ("controller", "truncate")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        for name in ("budget", "flash_raw", "summary_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1 token")
        for name in ("k", "flash_turns", "judge_above", "summarise_above"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        shares = ("w_rel", "w_rec", "w_imp", "w_trust", "rho", "least", "floor", "untrusted_share")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be within [0, 1]")
