"""The controller: it always ends, never exceeds its room, and decides by answers, not by echoes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import BaseMessage
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.pieces import Piece, Ruler
from palimpsest.memory.record import Record, Scope
from palimpsest.memory.stream.controller import (
    Asker,
    Form,
    Placed,
    concatenate,
    reorganise,
    score_judge,
)
from palimpsest.memory.stream.items import Item
from palimpsest.memory.stream.ranking import Candidate

RULER = Ruler(ScriptedLLM(lambda messages: "").count_tokens)


def text(tokens: int) -> str:
    return " ".join(["word"] * tokens)


def placed(
    raw: int, summary: int | None = None, scores: Mapping[str, float] | None = None
) -> Placed:
    """An item of so many tokens; the sizes are what the controller sees."""
    item = Item(Record(text=text(raw), scope=Scope()))
    candidate = Candidate(item=item, scores=scores or {"raw": 0.0}, score=0.0, signals={})
    short = None if summary is None else Piece(text(summary), summary)
    return Placed(candidate, Piece(text(raw), raw), short)


def keep(item: Placed) -> Form:
    return "raw"


def forms(items: Sequence[Placed]) -> list[str]:
    return [item.form for item in items]


def test_what_fits_stays_raw_and_asks_nobody() -> None:
    def judge(item: Placed) -> Form:
        raise AssertionError("nothing is over budget")

    items, rounds = reorganise([placed(10, 2), placed(20, 2)], 30, judge, RULER.cut)
    assert (forms(items), rounds) == (["raw", "raw"], 0)


def test_the_most_similar_item_is_never_judged() -> None:
    best, other = placed(20, 5), placed(20, 5)
    asked = []

    def judge(item: Placed) -> Form:
        asked.append(item)
        return "dropped"

    items, rounds = reorganise([best, other], 30, judge, RULER.cut)
    assert (forms(items), rounds, asked) == (["raw", "dropped"], 1, [other])


def test_a_summary_that_holds_the_answer_takes_the_place_of_the_item() -> None:
    items, rounds = reorganise(
        [placed(20, 5), placed(20, 5)], 30, lambda item: "summary", RULER.cut
    )
    assert (forms(items), rounds) == (["raw", "summary"], 1)


def test_the_second_round_shortens_the_least_similar_first_and_stops_when_all_fit() -> None:
    items = [placed(20, 5), placed(20, 5), placed(20, 5)]
    done, rounds = reorganise(items, 47, keep, RULER.cut)
    assert (forms(done), rounds) == (["raw", "raw", "summary"], 2)
    done, rounds = reorganise(items, 16, keep, RULER.cut)
    assert (forms(done), rounds) == (["summary"] * 3, 2)


def test_summaries_that_are_still_too_long_end_the_loop_by_dropping_the_least_similar() -> None:
    """The released code repeats its second round for ever here."""
    items = [placed(50, 20), placed(50, 20), placed(50, 20)]
    done, rounds = reorganise(items, 45, keep, RULER.cut)
    assert (forms(done), rounds) == (["summary", "summary", "dropped"], 3)
    assert done[2].reason == "least similar"


def test_a_single_item_that_is_too_long_is_cut() -> None:
    for item in (placed(50), placed(50, 20)):
        [cut], _ = reorganise([item], 8, keep, RULER.cut)
        assert 0 < cut.piece.tokens <= 8 and cut.reason == "cut"
        assert item.piece.text.startswith(cut.piece.text)
    [gone], _ = reorganise([placed(50)], 0, keep, RULER.cut)
    assert gone.form == "dropped"


def test_no_items_are_no_items() -> None:
    assert reorganise([], 0, keep, RULER.cut) == ([], 0)
    assert concatenate([], 0, RULER.cut) == ([], 0)


sizes = st.tuples(st.integers(1, 60), st.none() | st.integers(1, 30))


@given(
    shapes=st.lists(sizes, max_size=6),
    room=st.integers(0, 120),
    verdicts=st.lists(st.sampled_from(["raw", "summary", "dropped"]), min_size=6, max_size=6),
)
def test_it_ends_within_its_room_whatever_the_judge_says(
    shapes: list[tuple[int, int | None]], room: int, verdicts: list[Form]
) -> None:
    items = [placed(*shape) for shape in shapes]
    left = iter(verdicts)

    def judge(item: Placed) -> Form:
        verdict = next(left)
        return "raw" if verdict == "summary" and item.summary is None else verdict

    for done, _ in (reorganise(items, room, judge, RULER.cut), concatenate(items, room, RULER.cut)):
        assert sum(item.piece.tokens for item in done) <= room
        assert [item.candidate for item in done] == [item.candidate for item in items]
        assert all((item.form == "dropped") == (not item.piece.text) for item in done)


def test_the_ablation_takes_whole_texts_until_one_does_not_fit() -> None:
    done, _ = concatenate([placed(20), placed(20), placed(5)], 30, RULER.cut)
    assert forms(done) == ["raw", "dropped", "dropped"]
    [first, second], _ = concatenate([placed(50), placed(5)], 30, RULER.cut)
    assert (first.reason, second.form) == ("cut", "dropped")


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({"raw": 0.1, "summary": 0.2}, "dropped"),
        ({"raw": 0.6, "summary": 0.58}, "summary"),
        ({"raw": 0.6, "summary": 0.4}, "raw"),
        ({"raw": 0.2, "message": 0.6, "summary": 0.4}, "raw"),
        ({"raw": 0.6}, "raw"),
    ],
)
def test_the_score_judge_reads_probabilities(scores: dict[str, float], verdict: str) -> None:
    assert score_judge(0.3)(placed(50, 20, scores)) == verdict


def test_the_score_judge_takes_no_summary_that_does_not_exist() -> None:
    assert score_judge(0.3)(placed(50, None, {"raw": 0.5, "summary": 0.5})) == "raw"


def asker(yes: float = 0.0, **bonus: float) -> tuple[Asker, list[str]]:
    """An asker of a model that leans to yes by `yes`, and by each bonus whose word is there."""
    seen: list[str] = []

    def score(messages: Sequence[BaseMessage], answer: str) -> float:
        prompt = str(messages[-1].content)
        if answer == "No":
            return 0.0
        seen.append(prompt)
        return yes + sum(value for word, value in bonus.items() if word in prompt)

    return Asker(ScriptedLLM(lambda messages: "(B) No.", score=score, context_window=400)), seen


@pytest.mark.parametrize("bias", [-5.0, 0.0, 5.0])
def test_a_models_liking_for_one_answer_does_not_decide_the_gate(bias: float) -> None:
    ask, _ = asker(bias, remember=2.0, weather=-2.0)
    assert ask.gate("Do you remember me?") == 2.0
    assert ask.gate("How is the weather?") == -2.0


def test_undecided_counts_as_yes() -> None:
    ask, _ = asker()
    assert ask.gate("Anything at all") >= 0
    ask, _ = asker(hollow=float("nan"))
    assert ask.gate("a hollow message") >= 0


def test_the_words_of_an_answer_in_the_message_do_not_flip_the_decision() -> None:
    """The released parser took "(B)" anywhere for a no, an echo of the question included."""
    ask, _ = asker(remember=2.0)
    assert ask.gate("Do you remember what (B) No. stood for?") == 2.0


def test_the_empty_prompt_is_asked_once() -> None:
    ask, seen = asker()
    ask.gate("one")
    ask.gate("two")
    assert len(seen) == 3


def test_the_judge_asks_of_the_item_first_and_then_of_its_summary() -> None:
    ask, _ = asker(cello=1.0, violin=-1.0)
    judge = ask.judge("Which instrument?")
    item = placed(50, 20)
    with_cello = replace(item, raw=Piece("a cello and more", 4), summary=Piece("a cello", 2))
    assert judge(with_cello) == "summary"
    assert judge(replace(with_cello, summary=Piece("a violin", 2))) == "raw"
    assert judge(replace(with_cello, summary=None)) == "raw"
    assert judge(replace(with_cello, raw=Piece("a violin", 2))) == "dropped"


def test_a_text_longer_than_the_window_is_cut_for_the_judge_and_stays_fenced() -> None:
    ask, seen = asker(needle=1.0)
    ask.holds("needle " + text(5000) + " ===== \n", "Is there a needle?")
    assert all(len(prompt.split()) < 400 for prompt in seen)
    assert seen[-1].count("=====") == 4
