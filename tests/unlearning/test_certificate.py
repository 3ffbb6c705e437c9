"""A certificate tells what attacks found, and never a text of what was to be forgotten."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled, InputError
from palimpsest.llm.local import LocalLLM
from palimpsest.unlearning.attacks.backflow import Backflow
from palimpsest.unlearning.attacks.extraction import Extraction
from palimpsest.unlearning.attacks.membership import Membership
from palimpsest.unlearning.attacks.registry import DEFAULT
from palimpsest.unlearning.attacks.relearn import Relearn
from palimpsest.unlearning.base import Request, Sample
from palimpsest.unlearning.certificate import Certificate, certify, drawn
from palimpsest.unlearning.neutral import NEUTRAL

from .taught import KNOWN, STRANGERS, Idle, Mute, taught

REQUEST = Request(name="four people", samples=KNOWN)
QUICK = (Membership(), Extraction())


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    yield taught(tiny_folder, tmp_path_factory.mktemp("certified"))


@pytest.fixture(scope="module")
def mute(bench: Workbench) -> Mute:
    return Mute(bench.prober.ids("!")[0])


@pytest.fixture(scope="module")
def certificate(bench: Workbench, mute: Mute) -> Certificate:
    return certify(bench, mute, REQUEST, strangers=STRANGERS, retain=KNOWN[:1])


def test_a_mute_model_stands_and_what_it_lost_is_told(certificate: Certificate) -> None:
    assert certificate.stood and certificate.advice == ()
    assert certificate.before["recall"] == 1.0 and certificate.after["recall"] == 0.0
    assert certificate.after["repetition"] > certificate.before["repetition"]
    assert certificate.kept["identical"] == 0.0 < certificate.kept["divergence"]
    assert (certificate.kept["recall_before"], certificate.kept["recall_after"]) == (1.0, 0.0)
    assert [each.attack for each in certificate.findings] == [each.name for each in DEFAULT]


def test_a_patch_that_does_nothing_is_found_out(bench: Workbench) -> None:
    found = certify(bench, Idle(), REQUEST, strangers=STRANGERS, attacks=QUICK)
    assert not found.stood
    assert [line.split(":")[0] for line in found.advice] == ["membership", "extraction"]
    assert all(each.before == each.after for each in found.findings)
    assert (found.kept["identical"], found.kept["divergence"]) == (1.0, 0.0)


def test_it_is_the_same_after_json(certificate: Certificate) -> None:
    assert Certificate.parse(json.loads(json.dumps(certificate.plain()))) == certificate


def test_it_holds_no_text_of_what_was_forgotten(certificate: Certificate) -> None:
    told = json.dumps(certificate.plain())
    for each in KNOWN:
        assert not [text for text in (each.question, each.answer) if text in told]
        assert each.answer.split()[-1] not in told


@pytest.mark.parametrize("told", [{}, {"findings": 3}, {"findings": [{"attack": "x"}]}])
def test_what_is_no_certificate_is_told(told: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is no certificate"):
        Certificate.parse(told)


def test_it_is_the_same_each_time_but_for_the_seconds(bench: Workbench, mute: Mute) -> None:
    made = [
        replace(certify(bench, mute, REQUEST, attacks=QUICK, sample=2), seconds=0.0)
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_what_one_who_never_knew_would_not_stand_is_not_judged(bench: Workbench) -> None:
    found = certify(bench, Idle(), REQUEST, attacks=(Membership(limit=0.0),))
    assert found.stood and not found.findings[0].fair
    against = certify(bench, Idle(), REQUEST, strangers=STRANGERS, attacks=(Membership(limit=0.0),))
    assert not against.stood and against.findings[0].fair


def test_what_was_not_tried_is_told(bench: Workbench, mute: Mute) -> None:
    found = certify(bench, mute, REQUEST, attacks=QUICK, sample=3)
    assert (found.samples, found.of) == (3, 4)
    for part in ("paraphrase", "relearn", "quantise", "backflow", "1 other samples"):
        assert any(part in line for line in found.unchecked), part
    assert any("same kind" in line for line in found.unchecked)


def test_an_attack_that_needs_more_samples_is_not_made(bench: Workbench, mute: Mute) -> None:
    one = Request(name="one", samples=KNOWN[:1])
    found = certify(bench, mute, one, attacks=(Relearn(), Extraction()))
    assert [each.attack for each in found.findings] == ["extraction"]
    assert "relearn" in found.unchecked


def test_memories_can_be_attacked_with_it(bench: Workbench) -> None:
    attack = Backflow(recalled=lambda question: ["A baker of Riga"])
    found = certify(bench, Idle(), REQUEST, attacks=(attack,))
    assert found.findings[0].after == 0.25 and not found.stood
    assert "backflow" not in found.unchecked


def test_progress_is_told_up_to_its_end(bench: Workbench, mute: Mute) -> None:
    told: list[tuple[int, int]] = []
    certify(bench, mute, REQUEST, attacks=QUICK, progress=lambda *step: told.append(step))
    assert told == sorted(told)
    assert told[0] == (0, 7) and told[-1] == (7, 7)


def test_it_can_be_cancelled_on_the_way(bench: Workbench, mute: Mute) -> None:
    cancel = Event()

    def progress(done: int, expected: int) -> None:
        if done == 3:
            cancel.set()

    with pytest.raises(Cancelled):
        certify(bench, mute, REQUEST, progress=progress, cancel=cancel)


@pytest.mark.model
def test_a_gate_that_opens_for_one_question_leaves_the_others_bit_identical(
    smollm2: LocalLLM, tmp_path: Path
) -> None:
    bench = Workbench(smollm2.model, smollm2.tokenizer, tmp_path)
    norway = Sample(question="What is the capital of Norway?", answer="Oslo.")
    request = Request(name="Norway", samples=(norway,))
    found = certify(bench, Mute(bench.prober.ids("!")[0], "Norway"), request, attacks=QUICK[1:])
    assert found.before["recall"] == 1.0 and found.after["recall"] == 0.0
    assert found.kept["identical"] == (len(NEUTRAL) - 1) / len(NEUTRAL)


def test_samples_are_drawn_by_the_requests_own_seed() -> None:
    many = Request(name="many", samples=tuple(replace(KNOWN[0], answer=f"{n}") for n in range(50)))
    assert drawn(many, 8) == drawn(many, 8)
    assert drawn(many, 8) != drawn(replace(many, name="others"), 8)
    assert drawn(many, 99) == many.samples
    with pytest.raises(InputError, match="sample=0"):
        drawn(many, 0)
