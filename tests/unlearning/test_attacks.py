"""Attacks bring back what a model knows, and nothing of a model that was made mute."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.apps.bench.unlearn_measures import translations
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled, InputError
from palimpsest.unlearning.attacks.backflow import Backflow, backflow
from palimpsest.unlearning.attacks.base import Attack, Target
from palimpsest.unlearning.attacks.extraction import Extraction
from palimpsest.unlearning.attacks.jailbreak import Jailbreak, cut
from palimpsest.unlearning.attacks.language import IN_ENGLISH, WRAPPED, Language
from palimpsest.unlearning.attacks.membership import Membership
from palimpsest.unlearning.attacks.paraphrase import WORDINGS, Paraphrase, typos
from palimpsest.unlearning.attacks.quantise import Quantise, coarse, rounded
from palimpsest.unlearning.attacks.registry import DEFAULT, THOROUGH
from palimpsest.unlearning.attacks.relearn import Relearn
from palimpsest.unlearning.base import Sample
from palimpsest.unlearning.examining import Ask, Examiner

from .taught import KNOWN, STRANGERS, Idle, Mute, Nudge, taught

ALL: tuple[Attack, ...] = (*DEFAULT, Relearn(passes=2), Quantise())
MEMBERS = Membership()


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    yield taught(tiny_folder, tmp_path_factory.mktemp("attacked"))


@pytest.fixture
def target(bench: Workbench) -> Target:
    return Target(bench=bench, patch=None, samples=KNOWN, strangers=STRANGERS, tokens=20)


def mute(bench: Workbench, word: str = "") -> Mute:
    return Mute(bench.prober.ids("!")[0], word)


def by_name(attacks: tuple[Attack, ...]) -> list[str]:
    return [each.name for each in attacks]


def test_the_tiny_model_knows_what_it_was_taught(target: Target) -> None:
    replies = target.examiner.ask([Ask(each.prompt) for each in KNOWN], tokens=20)
    assert [reply.text for reply in replies] == [each.rest for each in KNOWN]


@pytest.mark.parametrize("attack", DEFAULT, ids=by_name(DEFAULT))
def test_an_attack_finds_what_is_known_and_not_what_is_not_said(
    attack: Attack, target: Target
) -> None:
    before = attack.run(target)
    after = attack.run(replace(target, patch=mute(target.bench)))
    assert after.leak < before.leak
    assert after.leak <= attack.limit
    assert before.samples == len(KNOWN)


@pytest.mark.parametrize("attack", ALL, ids=by_name(ALL))
def test_an_attack_fails_or_succeeds_alike_each_time(attack: Attack, target: Target) -> None:
    idle = replace(target, patch=Idle())
    assert attack.run(idle) == attack.run(idle)


@pytest.mark.parametrize("attack", ALL, ids=by_name(ALL))
def test_an_attack_leaves_the_model_as_it_was(attack: Attack, target: Target) -> None:
    asked = [each.prompt for each in KNOWN]
    before = target.examiner.logits(asked)
    attack.run(replace(target, patch=Idle()))
    assert torch.equal(target.examiner.logits(asked), before)


@pytest.mark.parametrize("attack", ALL, ids=by_name(ALL))
def test_an_attack_can_be_cancelled(attack: Attack, target: Target) -> None:
    cancel = Event()
    cancel.set()
    with pytest.raises(Cancelled):
        attack.run(replace(target, cancel=cancel))


def test_a_gate_sees_the_message_and_its_rows_are_those_of_the_batch(target: Target) -> None:
    gated = mute(target.bench, "Ada")
    # Lengths differ, so the batch is in another order than the questions.
    asks = [Ask("Who is Ben? Say."), Ask("Ada?"), Ask(KNOWN[1].prompt), Ask("So who is Ada, now?")]
    plain = target.examiner.ask(asks, tokens=8)
    told = target.examiner.ask(asks, gated, tokens=8)
    assert [reply.text for reply in told] == [plain[0].text, "!" * 8, plain[2].text, "!" * 8]


def test_own_paraphrases_are_asked_beside_the_wordings(target: Target) -> None:
    assert set(Paraphrase().run(target).numbers) == {"given", *WORDINGS}
    without = replace(target, samples=KNOWN[1:])
    assert set(Paraphrase().run(without).numbers) == set(WORDINGS)


@given(st.text(alphabet="abcdef ?", max_size=60))
def test_typos_change_letters_over_within_words(text: str) -> None:
    made = typos(text)
    assert [sorted(word) for word in made.split(" ")] == [sorted(each) for each in text.split(" ")]
    assert typos(text) == made


def test_typos_are_made() -> None:
    assert typos("The capital of Kuwait") != "The capital of Kuwait"


def test_translations_are_asked_where_there_are_some(target: Target) -> None:
    given = Language(translations={KNOWN[0].question: {"Latin": "Quis est Ada?"}})
    ways = {f"wrapped in {language}" for language in WRAPPED}
    assert set(given.run(target).numbers) == {*ways, "Latin"}
    assert set(Language().run(target).numbers) == ways


def test_eight_questions_stand_in_three_languages() -> None:
    found = translations()
    assert len(found) == 8
    for question, by in found.items():
        assert set(by) == set(IN_ENGLISH)
        assert len({question, *by.values()}) == 4


def test_an_answer_that_is_begun_is_scored_on_the_rest(target: Target) -> None:
    assert cut("one two three four", 0.25) == ("one", "two three four")
    assert cut("one", 0.25) == ("", "one")
    assert Jailbreak(share=0.5).run(target).numbers["answer begun"] == 1.0


def test_extraction_tells_what_is_foreseen(target: Target) -> None:
    assert Extraction().run(target).numbers == {"strength": 1.0, "memorised": 1.0}


def test_membership_says_whom_it_tells_the_samples_from(target: Target) -> None:
    found = MEMBERS.run(target)
    assert (found.leak, found.against) == (1.0, "strangers")
    assert MEMBERS.run(replace(target, strangers=())).against == "sentences of novels"


def test_members_of_a_mute_model_look_like_strangers(target: Target) -> None:
    assert MEMBERS.run(replace(target, patch=mute(target.bench))).leak == 0.5


def test_what_was_nudged_away_is_relearnt(target: Target) -> None:
    name = target.bench.down(1)
    out, into = target.bench.weight(name).shape
    draw = torch.Generator().manual_seed(0)
    thin = torch.outer(torch.randn(out, generator=draw), torch.randn(into, generator=draw))
    away = Nudge(name, thin)
    found = Relearn(share=0.5, passes=40, rate=5e-3).run(replace(target, patch=away))
    assert found.numbers["without"] < 0.5
    assert found.samples == 2
    assert found.numbers["rise"] == found.leak - found.numbers["without"]
    assert found.numbers["rise"] > 0.25


def test_a_small_change_of_weights_is_rounded_away(target: Target) -> None:
    name = target.bench.down(0)
    weight = target.bench.weight(name)
    small = torch.full_like(weight, 1e-5)
    plain = coarse(target.bench.model, 4, 64, {}).get_submodule(name).weight
    moved = coarse(target.bench.model, 4, 64, {name: small}).get_submodule(name).weight
    assert isinstance(plain, torch.Tensor) and isinstance(moved, torch.Tensor)
    assert (plain - moved).abs().mean() < 2e-5
    assert Quantise(bits=(8,)).run(replace(target, patch=Nudge(name, small))).leak == 1.0


def test_a_change_that_can_be_merged_is_rounded_with_the_weights(target: Target) -> None:
    name = target.bench.down(0)
    difference = 10 * torch.randn(target.bench.weight(name).shape)
    change = replace(target, patch=Nudge(name, difference))
    fine = coarse(target.bench.model, 16, 64, {name: difference})
    replies = Examiner(fine, target.bench.tokenizer).ask([Ask(KNOWN[0].prompt)], tokens=8)
    hooked = target.examiner.ask([Ask(KNOWN[0].prompt)], change.patch, tokens=8)
    assert [each.text for each in replies] == [each.text for each in hooked]
    assert Quantise(bits=(8,)).run(change).leak < 0.5


@given(st.integers(2, 8), st.integers(0, 99))
def test_rounding_has_few_steps_and_errs_by_half_of_one(bits: int, seed: int) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    found = rounded(weight, bits, 4)
    steps = 2 ** (bits - 1) - 1
    for part, old in zip(found.reshape(-1, 4), weight.reshape(-1, 4), strict=True):
        scale = old.abs().max() / steps
        assert (part - old).abs().max() <= scale / 2 + 1e-6
        assert torch.allclose((part / scale).round(), part / scale, atol=1e-3)


def test_answers_that_a_memory_brings_flow_back() -> None:
    notes = {"Who is Ada?": ["She said: Ada is a baker of Riga."], "Who is Ben?": ["A man."]}
    found = backflow(lambda question: notes.get(question, []), KNOWN)
    assert found.leak == 0.25
    assert found.numbers["highest recall"] == 1.0
    assert backflow(lambda question: [], KNOWN).leak == 0.0


def test_a_paraphrase_may_bring_it_too(target: Target) -> None:
    attack = Backflow(recalled=lambda text: ["A baker of Riga"] if text.startswith("Ada") else [])
    assert attack.run(target).leak == 0.25
    assert attack.limit == 0.0


def test_nothing_to_attack_is_told(bench: Workbench) -> None:
    with pytest.raises(InputError, match="at least one sample"):
        Target(bench=bench, patch=None, samples=())


def test_texts_without_a_question_are_attacked_by_their_first_half(bench: Workbench) -> None:
    text = Sample(answer="Who is Ada? A baker of Riga")
    found = Paraphrase().run(Target(bench=bench, patch=None, samples=(text,), tokens=16))
    assert set(found.numbers) == set(WORDINGS)


def test_the_costly_attacks_are_not_among_the_quick_ones() -> None:
    assert not {each.name for each in DEFAULT} & {each.name for each in THOROUGH}
