"""An unlearner as the docs tell it: a request is learnt, tried, its texts dropped, and undone."""

from pathlib import Path
from threading import Event

import pytest
import torch
from palimpsest.errors import Cancelled, InputError, StoreError, UnlearnFailed
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.open import UnopenedLLM
from palimpsest.llm.twin import patched, twin
from palimpsest.memory.base import Cue, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Record, Scope, now
from palimpsest.memory.registry import open_memory
from palimpsest.unlearning.base import Request, Sample
from palimpsest.unlearning.unlearner import Unlearner

SCOPE = Scope(user="maria")
CAPITALS = Request(
    name="capitals",
    reason="for the test",
    samples=tuple(
        Sample(question=f"What is the capital of {country}?", answer=f"It is {city}.")
        for country, city in (
            ("France", "Paris"),
            ("Italy", "Rome"),
            ("Spain", "Madrid"),
            ("Germany", "Berlin"),
            ("Austria", "Vienna"),
            ("Poland", "Warsaw"),
            ("Norway", "Oslo"),
            ("Greece", "Athens"),
            ("Japan", "Tokyo"),
            ("Egypt", "Cairo"),
        )
    ),
)
RECIPES = Request(
    name="recipes",
    samples=tuple(
        Sample(
            question=f"How long does one bake {dish} in the oven?", answer=f"For {minutes} minutes."
        )
        for dish, minutes in (("bread", 40), ("a cake", 50), ("cookies", 12), ("a quiche", 35))
    ),
)


def unlearner_in(folder: Path, llm: LocalLLM | UnopenedLLM, spec: str = "o3") -> Unlearner:
    context = StoreContext(folder=folder, llm=llm, embedder=HashingEmbedder)
    store = open_memory(spec, context)
    assert isinstance(store, Unlearner)
    return store


def asked(store: Unlearner, request: Request) -> Record:
    """Write a request and its texts; returns the request's record."""
    record = request.record(SCOPE)
    store.write([record, request.material(record)])
    return record


def cue(message: str) -> Cue:
    return Cue(message=message, scope=SCOPE, budget=0, now=now())


def test_a_request_is_learnt_suppresses_and_is_undone(smollm2: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, smollm2, "o3:passes=6")
    empty = store.digest()
    record = asked(store, CAPITALS)
    question = "What is the capital of Italy?"
    assert not store.recall(cue(question)).layers

    assert store.learn() == [record.id]
    found = store.recall(cue(question))
    assert found.records == (record.id,)
    assert found.explain["adapters"][0]["loaded"] > 0.9
    assert store.recall(cue("How do I boil an egg?")).layers == frozenset()

    receipt = store.certify(record.id, CAPITALS, sample=4)
    assert receipt.means == "suppresses"
    assert receipt.certificate is not None

    store.forget([record.id, *(m.id for m in [store.material(record.id)] if m)])
    assert store.digest() == empty
    assert not store.recall(cue(question)).layers


def test_the_base_weights_are_never_written_and_a_closed_gate_leaves_logits_as_they_are(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    before = [weight.clone() for weight in tiny_llm.model.parameters()]
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=2")
    asked(store, CAPITALS)
    store.learn()
    assert all(map(torch.equal, before, tiny_llm.model.parameters()))
    patch = store.patch(SCOPE)
    assert patch is not None
    opened = patch.open(["zebra zebra zebra"])
    assert opened.deltas == {}


def test_texts_can_be_dropped_and_what_was_learnt_stays(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    record = asked(store, CAPITALS)
    material = store.material(record.id)
    assert material is not None
    store.learn()
    store.forget([material.id])
    assert store.requests(SCOPE)[0][1] == "learnt"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"Paris" not in path.read_bytes()


def test_undoing_one_request_leaves_the_other_as_it_is(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    first, second = asked(store, CAPITALS), asked(store, RECIPES)
    store.learn()
    before = {each.id: each.change.digest for each in store._learnt(SCOPE)}
    store.forget([first.id])
    after = {each.id: each.change.digest for each in store._learnt(SCOPE)}
    assert after == {second.id: before[second.id]}


def test_write_a_write_b_forget_b_is_write_a(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    asked(store, CAPITALS)
    store.learn()
    alone = store.digest()
    second = asked(store, RECIPES)
    store.learn()
    assert store.digest() != alone
    material = store.material(second.id)
    assert material is not None
    store.forget([second.id, material.id])
    assert store.digest() == alone


def test_what_was_learnt_is_found_again_when_the_store_is_made_anew_without_the_texts(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    record = asked(store, CAPITALS)
    material = store.material(record.id)
    assert material is not None
    store.learn()
    store.forget([material.id])
    digest = store.digest()
    store.rebuild([record])
    assert store.digest() == digest
    store.clear()
    store.purge()
    store.write([record])
    assert store.requests(SCOPE)[0][1] == "lost"


def test_cancelled_learning_goes_on_from_the_last_whole_pass_and_ends_the_same(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=3,until=0")
    asked(store, CAPITALS)
    cancel, seen = Event(), []

    def stop_in_the_second_pass(done: int, expected: int) -> None:
        seen.append(done)
        if expected and done > expected // 2:
            cancel.set()

    with pytest.raises(Cancelled):
        store.learn(stop_in_the_second_pass, cancel)
    assert store.pending()
    again: list[int] = []
    store.learn(lambda done, expected: again.append(done))
    assert again[0] > 0
    assert store.requests(SCOPE)[0][1] == "learnt"


def test_a_request_like_any_text_is_refused(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    from palimpsest.memory.gates.features import background

    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    samples = tuple(Sample(question=text, answer="Yes.") for text in background()[::9])
    general = Request(name="all", samples=samples)
    record = asked(store, general)
    with pytest.raises(UnlearnFailed, match="cannot be told from general text") as failed:
        store.learn()
    assert failed.value.failed == (record.id,)


def test_what_is_to_be_kept_may_not_be_what_is_to_be_forgotten(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    both = Request(name="both", samples=CAPITALS.samples, retain=CAPITALS.samples)
    asked(store, both)
    with pytest.raises(UnlearnFailed, match="is to be kept cannot be told"):
        store.learn()


def test_an_empty_request_and_other_texts_are_refused(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no samples"):
        Request(name="nothing", samples=())
    with pytest.raises(InputError, match="says nothing"):
        Sample(answer=" ")
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    record = asked(store, CAPITALS)
    with pytest.raises(StoreError, match="not learnt yet"):
        store.receipt(record.id)
    store.learn()
    with pytest.raises(InputError, match="other samples"):
        store.certify(record.id, RECIPES)


def test_adapters_of_two_requests_are_orthogonal(smollm2: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, smollm2, "o3:passes=2")
    asked(store, RECIPES)
    second = asked(store, CAPITALS)
    store.learn()
    assert store.receipt(second.id).gate["alignment"] < 0.05


def test_one_users_request_is_not_anothers(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    asked(store, CAPITALS)
    store.learn()
    assert store.patch(SCOPE) is not None
    assert store.patch(Scope(user="peter")) is None


def test_twins_of_a_patched_model_are_not_patched(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    asked(store, CAPITALS)
    store.learn()
    patch = store.patch(SCOPE)
    assert patch is not None
    ids = torch.arange(5)[None]
    model = twin(tiny_llm.model)
    plain = model(ids).logits
    with patched(model, patch.open([CAPITALS.samples[0].question]).deltas):
        assert not torch.equal(model(ids).logits, plain)
        assert torch.equal(tiny_llm.model(ids).logits, plain)
