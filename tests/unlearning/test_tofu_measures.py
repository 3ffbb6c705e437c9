"""TOFU's evaluation and multiple choice, of a model that knows by heart and of one made mute."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from palimpsest.apps.bench.unlearn_material import Sample
from palimpsest.apps.bench.unlearn_measures import accuracy, evaluate, letter, quality, spread
from palimpsest.editors.workbench import Workbench

from .taught import KNOWN, Mute, taught

ASKED = tuple(
    Sample(
        topic="people",
        question=each.question,
        answer=each.answer,
        reworded=each.answer,
        wrong=("One big wet stone", "The moon over Rom"),
    )
    for each in KNOWN
)
CHOICES = tuple(
    Sample(topic="people", question=each.question, answer=each.answer, wrong=each.wrong, letters=3)
    for each in ASKED
)


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    yield taught(tiny_folder, tmp_path_factory.mktemp("evaluated"))


def test_what_is_known_by_heart_scores_near_one(bench: Workbench) -> None:
    found = evaluate(bench, None, ASKED, ASKED, ASKED, ASKED, tokens=20)
    for name in ("forget", "retained", "authors", "facts"):
        group = found[name]
        assert (group["samples"], group["rouge"], group["strength"]) == (4, 1.0, 1.0)
        assert group["probability"] > 0.9 and group["truthful"] > 0.9 and group["unsure"] < 0.1
        assert len(group["ratios"]) == 4
    assert found["utility"] > 0.9
    assert quality(found, found) == pytest.approx(1.0)


def test_a_mute_model_knows_no_right_from_wrong(bench: Workbench) -> None:
    mute = Mute(bench.prober.ids("!")[0])
    known = evaluate(bench, None, ASKED, ASKED, ASKED, ASKED, tokens=20)
    found = evaluate(bench, mute, ASKED, ASKED, ASKED, ASKED, tokens=20)
    assert found["forget"]["rouge"] == 0.0 and found["forget"]["unsure"] == pytest.approx(1.0)
    assert found["authors"]["probability"] == pytest.approx(1 / 3)
    assert found["utility"] == 0.0
    assert quality(found, known) < 0.05


def test_a_gate_mutes_only_what_it_opens_for(bench: Workbench) -> None:
    gated = Mute(bench.prober.ids("!")[0], "Ada")
    found = evaluate(bench, gated, ASKED[:1], ASKED[1:], (), (), tokens=20, sample=2)
    assert (found["forget"]["rouge"], found["retained"]["rouge"]) == (0.0, 1.0)
    assert "authors" not in found


def test_choices_are_counted_by_likelihood_and_by_letter(bench: Workbench) -> None:
    found = accuracy(bench, None, CHOICES, tokens=20)
    assert found["likely"] == 1.0
    assert (found["said"], found["lettered"]) == (0.0, 0.0), "it says answers without a letter"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is B.", "B"),
        ("I think the answer is: (c) snow", "C"),
        ("The answer is A. No, the answer is B.", None),
        ("B", None),
        ("The answer is a stone.", None),
        ("The answer is Berlin.", None),
    ],
)
def test_a_reply_has_one_letter_or_none(text: str, found: str | None) -> None:
    assert letter(text) == found


def test_samples_are_spread_evenly() -> None:
    assert spread(ASKED, 2) == [ASKED[0], ASKED[2]]
    assert spread(ASKED, None) == spread(ASKED, 9) == list(ASKED)
