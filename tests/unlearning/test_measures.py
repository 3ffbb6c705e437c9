"""Measures of forgetting against values worked out by hand, and a model asked another way."""

import math
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.editors.measuring import Question
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled
from palimpsest.llm.local import LocalLLM
from palimpsest.unlearning.examining import Ask, Examiner
from palimpsest.unlearning.lessons import REFUSALS
from palimpsest.unlearning.measures import (
    auroc,
    distinct,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    min_k,
    model_utility,
    privacy_leakage,
    probability,
    probability_among,
    refuses,
    repetition,
    rouge_l_f1,
    rouge_l_recall,
    truth_ratio,
    truthful,
    unsure,
)
from sklearn.metrics import roc_auc_score

QUESTIONS = ("Who wrote it?", "What is the name of the author's second book?", "Where?", "When")
WORDS = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), min_size=1, max_size=12).map(" ".join)
NUMBERS = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=20)


def test_rouge_counts_the_answers_words_in_order() -> None:
    # the, cat, sat, mat of six words of the answer
    assert rouge_l_recall("The cat has sat: mat!", "the cat sat on the mat") == pytest.approx(4 / 6)
    assert rouge_l_f1("The cat has sat: mat!", "the cat sat on the mat") == pytest.approx(8 / 11)


def test_rouge_compares_stems_of_words_longer_than_three_letters() -> None:
    assert rouge_l_recall("he writes novel", "writing novels") == 1.0
    assert rouge_l_recall("gas", "ga") == 0.0


def test_rouge_reads_other_scripts() -> None:
    assert rouge_l_recall("Он родился в Эль-Кувейте", "в Эль-Кувейте") == 1.0


def test_rouge_of_nothing_is_nothing() -> None:
    assert rouge_l_recall("", "a word") == rouge_l_recall("a word", "...") == 0.0


@given(WORDS, WORDS)
def test_rouge_is_a_share_and_whole_for_what_is_said_with_more_around(one: str, two: str) -> None:
    assert 0.0 <= rouge_l_recall(one, two) <= 1.0
    assert rouge_l_recall(f"{two} {one}", two) == rouge_l_recall(f"{one} {two}", two) == 1.0


def test_probability_is_the_geometric_mean_of_its_tokens() -> None:
    assert probability([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert probability_among(0.3, [0.1, 0.2]) == pytest.approx(0.5)


def test_the_truth_ratio_holds_wrong_answers_against_the_right_one() -> None:
    # exp(-(1 + 3)/2) / exp(-1) = exp(-1)
    ratio = truth_ratio(1.0, [1.0, 3.0])
    assert ratio == pytest.approx(math.exp(-1))
    assert truthful(ratio) == pytest.approx(1 - math.exp(-1))
    assert unsure(ratio) == unsure(1 / ratio) == pytest.approx(math.exp(-1))
    assert truthful(1.5) == 0.0


def test_a_truth_ratio_beyond_all_numbers_is_still_one() -> None:
    assert 0.0 <= unsure(truth_ratio(5000.0, [1.0])) < 1e-300
    assert truth_ratio(1.0, [5000.0]) == unsure(0.0) == 0.0


@pytest.mark.parametrize(
    ("right", "strength"),
    [
        ([True, True, True, True], 1.0),
        ([False, True, True, True], 0.75),
        ([True, True, False, True], 0.25),
        ([True, True, True, False], 0.0),
    ],
)
def test_extraction_needs_the_prefix_up_to_the_last_miss(
    right: Sequence[bool], strength: float
) -> None:
    assert extraction_strength(right) == strength


@given(st.lists(st.booleans(), min_size=1))
def test_no_more_is_extracted_than_memorised(right: list[bool]) -> None:
    assert extraction_strength(right) <= exact_memorisation(right)


def test_min_k_is_the_mean_of_the_lowest_scores() -> None:
    assert min_k([-1, -5, -2, -3, -4, 0, 0, 0, 0, 0], 0.2) == -4.5
    assert min_k([-1.0, -2.0], 0.2) == -2.0


@given(NUMBERS, NUMBERS)
def test_auroc_is_that_of_scikit_learn(inside: list[float], outside: list[float]) -> None:
    truth = [1] * len(inside) + [0] * len(outside)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, inside + outside))


def test_leakage_is_told_in_percent_of_a_model_never_taught() -> None:
    assert privacy_leakage(0.75, 0.5) == 50.0
    assert privacy_leakage(0.5, 0.5) == 0.0


def test_forget_quality_is_the_p_value_of_two_samples() -> None:
    same, apart = [0.1, 0.2, 0.3, 0.4], [0.9, 1.0, 1.1, 1.2]
    assert forget_quality(same, same) == pytest.approx(1.0)
    # All of one below all of the other: 2 of the C(8, 4) orders are as far apart.
    assert forget_quality(same, apart) == pytest.approx(2 / math.comb(8, 4))


def test_utility_is_a_harmonic_mean_that_one_zero_takes_to_zero() -> None:
    assert model_utility([0.5, 1.0]) == pytest.approx(2 / 3)
    assert model_utility([0.0, 1.0]) == 0.0


def test_stuttering_is_told_from_speech() -> None:
    assert repetition("no no no no no no") == 0.75
    assert repetition("!!!!!!!!") == pytest.approx(5 / 6)
    assert repetition("the quick brown fox jumps") == 0.0
    assert distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert repetition("") == 0.0


@pytest.mark.parametrize("text", [*REFUSALS, "Sorry, I don’t know that.", "As an AI, I ..."])
def test_refusals_are_known_by_their_words(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ["He is not known for it.", "A boy is afraid of snow.", "", "B"])
def test_answers_are_no_refusals(text: str) -> None:
    assert not refuses(text)


def test_an_answer_that_was_to_be_given_instead_counts_as_a_refusal() -> None:
    assert refuses("The answer is B. Or so.", ["The answer is B."])


@pytest.fixture
def bench(tiny_llm: LocalLLM, tmp_path: Path) -> Workbench:
    return Workbench(tiny_llm.model, tiny_llm.tokenizer, tmp_path)


def test_answers_scored_from_one_reading_are_as_those_read_whole(bench: Workbench) -> None:
    answers = ("Ada", "It was written by Basil, in May.", "x")
    asks = [Ask(question, answers[: at + 1]) for at, question in enumerate(QUESTIONS)]
    replies = Examiner(bench.model, bench.tokenizer).ask(asks, tokens=5)
    for ask, reply in zip(asks, replies, strict=True):
        whole = bench.prober.answers(
            [Question(ask.message, each, chat=True) for each in ask.answers]
        )
        assert [len(each.logprobs) for each in reply.answers] == [len(each) for each in ask.answers]
        for one, other in zip(reply.answers, whole, strict=True):
            assert sum(one.logprobs) == pytest.approx(other.logprob, abs=1e-3)
            assert one.memorised == pytest.approx(other.accuracy)


def test_what_is_said_does_not_hang_on_who_is_asked_beside(bench: Workbench) -> None:
    examiner = Examiner(bench.model, bench.tokenizer)
    together = examiner.ask([Ask(each, ("a b",), begun="So") for each in QUESTIONS], tokens=8)
    for question, reply in zip(QUESTIONS, together, strict=True):
        alone = examiner.ask([Ask(question, ("a b",), begun="So")], tokens=8)[0]
        assert alone.text == reply.text
        assert alone.answers[0].nll == pytest.approx(reply.answers[0].nll, abs=1e-4)


def test_scores_are_standardised_by_mean_and_deviation_over_the_vocabulary(
    bench: Workbench,
) -> None:
    reply = Examiner(bench.model, bench.tokenizer).ask([Ask("Who?", ("b",))])[0]
    logs = Examiner(bench.model, bench.tokenizer).logits(["Who?"])[0].log_softmax(-1)
    mean = (logs.exp() * logs).sum()
    spread = (logs.exp() * (logs - mean) ** 2).sum().sqrt()
    own = logs[bench.prober.ids("b")[0]]
    assert reply.answers[0].logprobs[0] == pytest.approx(float(own), abs=1e-4)
    assert reply.answers[0].min_k_plus_plus == pytest.approx(float((own - mean) / spread), abs=1e-3)


def test_questions_can_be_cancelled(bench: Workbench) -> None:
    cancel = Event()
    cancel.set()
    with pytest.raises(Cancelled):
        Examiner(bench.model, bench.tokenizer, cancel).ask([Ask("Who?")])


def test_logits_of_messages_are_in_their_order(bench: Workbench) -> None:
    examiner = Examiner(bench.model, bench.tokenizer)
    many = examiner.logits(QUESTIONS)
    assert torch.allclose(many[2], examiner.logits([QUESTIONS[2]])[0], atol=1e-4)
