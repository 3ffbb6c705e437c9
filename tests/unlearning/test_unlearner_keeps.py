"""What was learnt of a request, once its texts are gone, outlives whatever befalls its store."""

from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from palimpsest.editors.base import Change
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled, StoreError, UnlearnFailed
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.gates.features import background
from palimpsest.memory.record import RecordId, new_id
from palimpsest.unlearning.base import Request, Sample
from palimpsest.unlearning.student import Shape, Student
from palimpsest.unlearning.unlearner import Unlearner
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from .test_unlearner import CAPITALS, RECIPES, SCOPE, asked, unlearner_in


def states(store: Unlearner) -> list[str]:
    return [state for _, state in store.requests(SCOPE)]


def dropped(store: Unlearner, request: Request) -> RecordId:
    """Have a request learnt and its texts dropped; its id."""
    record = asked(store, request)
    store.learn()
    material = store.material(record.id)
    assert material is not None
    store.forget([material.id])
    return record.id


def another(llm: LocalLLM) -> LocalLLM:
    """A model of the same kind with other weights."""
    with torch.no_grad():
        other = LocalLLM(type(llm.model)(llm.model.config).eval(), llm.tokenizer, name="other")
    return other


def test_what_is_forgotten_while_a_store_is_made_anew_takes_no_other_with_it(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    first, second = CAPITALS.record(SCOPE), RECIPES.record(SCOPE)
    texts = [CAPITALS.material(first), RECIPES.material(second)]
    store.write([first, texts[0], second, texts[1]])
    store.learn()
    store.forget([each.id for each in texts])
    digest = store.digest()
    store.note_dropped(first.id, "report")
    store.clear()  # and then, as the ledger tells it
    store.write([first])
    store.forget([texts[0].id])
    store.write([second])
    store.forget([texts[1].id])
    assert states(store) == ["learnt", "learnt"] and store.digest() == digest
    assert store.receipt(first.id).dropped == "report"


def test_what_was_learnt_for_one_model_outlives_a_turn_with_another(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    store = unlearner_in(home, tiny_llm, "o3:passes=1")
    kept = dropped(store, CAPITALS)
    store.close()
    other = unlearner_in(home, another(tiny_llm), "o3:passes=1")
    assert states(other) == ["lost"]
    gone = dropped(other, RECIPES)
    other.forget([gone])
    other.purge()
    other.close()
    again = unlearner_in(home, tiny_llm, "o3:passes=1")
    assert states(again) == ["learnt"]
    assert len(list(home.rglob("changes/*"))) == 2
    again.forget([kept])
    assert not list(home.rglob("changes/*"))


def test_a_request_undone_while_another_is_learnt_ends_nothing(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    first, second = asked(store, CAPITALS), asked(store, RECIPES)
    material = store.material(second.id)
    assert material is not None

    def undo(done: int, of: int) -> None:
        store.forget([second.id, material.id])

    made = store.learn(undo)
    assert made == [first.id]
    with pytest.raises(StoreError, match="undone meanwhile"):
        store.learn_from(second.id, RECIPES)


def test_learning_cut_short_under_other_options_begins_anew(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=3,until=0")
    asked(store, CAPITALS)
    cancel = Event()
    with pytest.raises(Cancelled):
        store.learn(lambda done, of: cancel.set() if done > of / 2 else None, cancel)
    assert list(tmp_path.rglob("begun/*"))
    other = unlearner_in(tmp_path, tiny_llm, "o3:passes=1,rank=4,depth=0.9")
    assert len(other.learn()) == 1
    assert not list(tmp_path.rglob("begun/*"))


def test_requests_learnt_under_different_options_hold_together(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    dropped(unlearner_in(tmp_path, tiny_llm, "o3:passes=2,depth=0"), CAPITALS)
    for options in ("depth=0.9", "depth=0,scorer=knn"):
        store = unlearner_in(tmp_path, tiny_llm, f"o3:passes=1,{options}")
        patch = store.patch(SCOPE)
        assert patch is not None
        alone = patch.layers
        assert patch.open([CAPITALS.samples[0].question]).deltas.keys() == alone
        gone = dropped(store, RECIPES)
        patch = store.patch(SCOPE)
        assert patch is not None
        assert patch.layers >= alone
        both = [CAPITALS.samples[0].question, RECIPES.samples[0].question]
        assert patch.open(both).deltas.keys() >= alone
        store.forget([gone])
        store.close()


def test_a_request_that_cannot_be_learnt_holds_up_no_other(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    texts = (Sample(question=text, answer="Yes.") for text in background()[::9])
    bad = asked(store, Request(name="all", samples=tuple(texts)))
    asked(store, CAPITALS)
    with pytest.raises(UnlearnFailed) as failed:
        store.learn()
    assert failed.value.failed == (bad.id,)
    assert states(store) == ["pending", "learnt"]


def test_a_damaged_copy_replaces_nothing_and_is_told(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    store = unlearner_in(tmp_path / "store", tiny_llm, "o3:passes=1")
    dropped(store, CAPITALS)
    digest = store.digest()
    store.save(tmp_path / "copy")
    [file] = tmp_path.glob("copy/requests/*")
    file.write_text("{}")
    with pytest.raises(StoreError, match="cannot be read"):
        store.load(tmp_path / "copy")
    assert store.digest() == digest


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_of_a_model_in_half_precision_is_whole_floats(
    family: str, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
    config = (
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, **sizes)
        if family == "llama"
        else GPT2Config(n_embd=32, n_layer=2, n_head=2, **sizes)
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    bench = Workbench(model, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE())), tmp_path)
    shape = Shape(depth=0.5, rank=4, alpha=8, dropout=0.0)
    student = Student(bench, shape, seed=1)
    change = Change(tensors=student.tensors())
    assert {each.dtype for each in change.tensors.values()} == {torch.float32}
    assert len(change.digest) == 64
    lesson = student.read([([1, 2, 3], [4, 5]), ([1, 2], [3])])
    student.losses(lesson).mean().backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None for each in student.parameters)


def test_what_is_no_request_is_left_out_and_keeps_nothing_from_coming(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    store = unlearner_in(tmp_path, tiny_llm, "o3:passes=1")
    record = CAPITALS.record(SCOPE)
    whole = CAPITALS.material(record)
    strange = [
        replace(whole, id=new_id(), parents=()),
        replace(whole, id=new_id(), text="{}"),
        replace(record, id=new_id(), meta={}),
    ]
    store.write([*strange, record, whole])
    assert store.held() == {record.id, whole.id}
    assert store.learn() == [record.id]
