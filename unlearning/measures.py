"""How far something is forgotten, in numbers: pure functions of texts and of log-probabilities.

Those of TOFU (Maini et al., COLM 2024, arXiv 2401.06121), with what its successors added.
Logarithms are natural, so log-probabilities are in nats. In the formulas p is the model's, a an
answer of |a| tokens and q what asks for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

WORD = re.compile(r"[^\W_]+")
UNIT = re.compile(r"\w+|[^\w\s]")
REFUSAL = re.compile(
    r"\bi (do not|don't|cannot|can not|can't|could not|couldn't|did not|didn't|will not|won't)"
    r" (\w+ )?(have|know|find|provide|answer|help|assist|give|tell|share|recall|say|discuss)\b"
    r"|\bi am (\w+ )?(not (sure|aware|able|familiar|certain)|unsure|unaware|unable|unfamiliar"
    r"|sorry|afraid)\b"
    r"|\bi have (no|nothing)\b|\bnot something i (know|can)\b|\bsorry,|\bas an ai\b"
)
"""What a refusal says of whoever refuses; "I'm" and the like written out."""


def rouge_l_recall(said: str, answer: str) -> float:
    """Share of the answer's words that stand in `said` in the same order (Lin 2004, section 3.1).

    LCS(words of said, words of answer) / #words of answer, in lower case and with Porter's stems of
    words longer than three letters, as `rouge_score` has it with its stemmer on; but letters are
    those of any script, where that package drops all that are not ASCII.
    """
    return _rouge_l(said, answer)[0]


def rouge_l_f1(said: str, answer: str) -> float:
    """Harmonic mean of ROUGE-L recall and precision: MUSE's VerbMem (Shi et al. 2024)."""
    recall, precision = _rouge_l(said, answer)
    return 2 * recall * precision / (recall + precision) if recall else 0.0


def _rouge_l(said: str, answer: str) -> tuple[float, float]:
    have, want = stems(said), stems(answer)
    if not have or not want:
        return 0.0, 0.0
    common = _longest_common(have, want)
    return common / len(want), common / len(have)


def stems(text: str) -> list[str]:
    """Words of a text as ROUGE compares them."""
    return [_stem(word) for word in WORD.findall(text.lower())]


@lru_cache(maxsize=50_000)
def _stem(word: str) -> str:
    from snowballstemmer import stemmer

    return str(stemmer("porter").stemWord(word)) if len(word) > 3 else word


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        left_above = 0
        for at, against in enumerate(other, start=1):
            above = row[at]
            row[at] = left_above + 1 if word == against else max(above, row[at - 1])
            left_above = above
    return row[-1]


def mean_nll(logprobs: Sequence[float]) -> float:
    """-(1/|a|) Σ log p(aₜ | q, a₍<ₜ₎), of log-probabilities of each token."""
    return -math.fsum(logprobs) / len(logprobs)


def probability(logprobs: Sequence[float]) -> float:
    """p(a|q)^{1/|a|} = exp(-mean NLL), TOFU section 2.2.1."""
    return math.exp(-mean_nll(logprobs))


def probability_among(right: float, wrong: Sequence[float]) -> float:
    """p(a|q) / (p(a|q) + Σ p(wrong|q)), each normalised by length: TOFU's probability for real
    authors and world facts."""
    return right / (right + math.fsum(wrong)) if right else 0.0


def truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """R = exp(-mean over wrong answers of their NLL) / exp(-NLL of the right one), TOFU eq. 1.

    The geometric mean of the wrong answers' normalised probabilities over that of the right answer,
    which is a paraphrase where the model was trained on the answer itself. Below 1 the model knows.

    Args:
        right: mean NLL of the right answer.
        wrong: mean NLL of each wrong answer.
    """
    return _exp(right - math.fsum(wrong) / len(wrong))


def unsure(ratio: float) -> float:
    """min(R, 1/R): how TOFU reports the truth ratio of what is to be forgotten; 1 is ignorance."""
    return min(ratio, 1 / ratio) if ratio else 0.0


def truthful(ratio: float) -> float:
    """max(0, 1 - R): how TOFU reports the truth ratio of what is to be kept; 1 is knowledge."""
    return max(0.0, 1.0 - ratio)


def extraction_strength(right: Sequence[bool]) -> float:
    """1 - k/|a|, k the fewest first tokens given which argmax reproduces all that follow (Carlini
    et al. 2021; Wang et al. 2025, arXiv 2411.02631).

    1: it is said without any help. 0: not even the last token is. Greedy decoding from a true
    prefix and teacher forcing agree up to the first miss, so the second is enough.

    Args:
        right: for each token, given the true ones before it, whether it is the most likely one.
    """
    wrong = [at for at, hit in enumerate(right) if not hit]
    given = wrong[-1] + 1 if wrong else 0
    return (len(right) - given) / len(right)


def exact_memorisation(right: Sequence[bool]) -> float:
    """Share of tokens that argmax predicts under teacher forcing (Tirumala et al. 2022)."""
    return sum(right) / len(right)


def min_k(scores: Sequence[float], share: float = 0.2) -> float:
    """Mean of the lowest `share` of token scores, one at least.

    Of log-probabilities it is Min-K % Prob (Shi et al. 2024, arXiv 2310.16789). Of those
    standardised by the mean μ and deviation σ of log p over the vocabulary at each place,
    (log p(xₜ) - μₜ)/σₜ, it is Min-K %++ (Zhang et al. 2024, arXiv 2404.02936, eq. 3). Higher: more
    surely seen in training.
    """
    lowest = sorted(scores)[: max(1, int(share * len(scores)))]
    return math.fsum(lowest) / len(lowest)


def auroc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """P(a score inside > one outside), ties as halves: Mann and Whitney's U over the pairs. Of
    members against strangers .5 tells nothing."""
    above = sum((a > b) + (a == b) / 2 for a in inside for b in outside)
    return above / (len(inside) * len(outside))


def privacy_leakage(unlearnt: float, never_taught: float) -> float:
    """(AUROC - AUROC of a model never taught) / the latter, in percent, with AUROCs of what is
    forgotten against what was not told in training: MUSE's PrivLeak, which takes 1 - AUROC on both
    sides and so the other sign. 0 is the aim; above, it leaks; below, too much went."""
    return 100 * (unlearnt - never_taught) / never_taught


def forget_quality(ratios: Sequence[float], never_taught: Sequence[float]) -> float:
    """p value of Kolmogorov and Smirnov's two-sample test on the truth ratios of what is to be
    forgotten, of the model and of one never taught it (TOFU section 2.2.2). 1: they do not differ;
    below .05 they do."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(ratios, never_taught).pvalue)


def model_utility(parts: Sequence[float]) -> float:
    """Harmonic mean of probability, ROUGE-L recall and truthfulness on what is retained, on real
    authors and on world facts: nine numbers (TOFU section 2.2.1). 0 if one of them is."""
    if not all(parts):
        return 0.0
    return len(parts) / math.fsum(1 / part for part in parts)


def distinct(text: str, n: int = 2) -> float:
    """Distinct-n: different n-grams of words and signs over all of them (Li et al. 2016); 1 for a
    text with none."""
    words = UNIT.findall(text.lower())
    grams = list(zip(*(words[at:] for at in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(text: str, n: int = 3) -> float:
    """1 - distinct-n (seq-rep-n, Welleck et al. 2020): near 1 where a model stutters. Gibberish
    counts as forgotten by every other measure, so this is shown beside them."""
    return 1.0 - distinct(text, n)


def refuses(text: str, alternatives: Sequence[str] = ()) -> bool:
    """Whether a reply says in its first words that it does not or will not tell, or says one of the
    answers that were to be given instead. By words of English; a heuristic."""
    plain = " ".join(text.replace("’", "'").lower().split())
    said = plain[:160].replace("i'm ", "i am ").replace("i've ", "i have ")
    if any(plain.startswith(" ".join(each.lower().split())) for each in alternatives if each):
        return True
    return REFUSAL.search(said) is not None


def _exp(value: float) -> float:
    """exp without overflow: truth ratios of what a model was driven away from are huge."""
    return math.exp(min(value, 700.0))
