"""An editor as the docs tell it: an edit is learnt, verified, asked in other words, and undone."""

from pathlib import Path

import pytest
import torch
from palimpsest.editors.base import Edit
from palimpsest.editors.editor import Editor
from palimpsest.errors import EditFailed
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.open import UnopenedLLM
from palimpsest.memory.base import Cue, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Scope, now
from palimpsest.memory.registry import open_memory

SCOPE = Scope(user="maria")
EDIT = Edit(
    prompt="The capital of Atlantis is",
    target="Poseidonis",
    subject="Atlantis",
    paraphrases=("Atlantis' capital city is",),
    locality=(("The capital of France is", "Paris"),),
)


def editor_in(folder: Path, llm: LocalLLM, spec: str = "wise") -> Editor:
    context = StoreContext(folder=folder, llm=llm, embedder=HashingEmbedder)
    editor = open_memory(spec, context)
    assert isinstance(editor, Editor)
    return editor


def cue(message: str) -> Cue:
    return Cue(message=message, scope=SCOPE, budget=0, now=now())


def test_an_edit_is_learnt_verified_and_undone(smollm2: LocalLLM, tmp_path: Path) -> None:
    editor = editor_in(tmp_path, smollm2)
    empty = editor.digest()
    record = EDIT.record(SCOPE)
    editor.write([record])
    assert not editor.recall(cue(EDIT.prompt)).layers

    assert editor.learn() == [record.id]
    [receipt] = editor.verify([record.id])
    assert receipt.verified, receipt.advice
    assert receipt.before.text != "Poseidonis" == receipt.after.text
    assert receipt.after.logprob > receipt.before.logprob
    assert editor.recall(cue("What is the capital of Atlantis?")).records == (record.id,)
    assert editor.recall(cue("The capital of France is")).records == ()

    editor.forget([record.id])
    assert editor.digest() == empty
    assert not editor.recall(cue(EDIT.prompt)).layers


def test_the_base_weights_are_never_written(smollm2: LocalLLM, tmp_path: Path) -> None:
    before = [weight.clone() for weight in smollm2.model.parameters()]
    editor = editor_in(tmp_path, smollm2)
    editor.write([EDIT.record(SCOPE)])
    editor.learn()
    assert all(map(torch.equal, before, smollm2.model.parameters()))


@pytest.mark.parametrize("field", ["prompt", "target"])
def test_an_edit_that_says_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}='  ' says nothing"):
        Edit(**dict.fromkeys(("prompt", "target"), "blue") | {field: "  "})  # type: ignore[arg-type]


def test_what_a_crash_left_half_written_is_gone_when_it_is_opened_again(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    editor_in(tmp_path, tiny_llm).close()
    [edits] = tmp_path.rglob("edits")
    left = [edits / "1.json.new", edits.parent / "changes" / "1.safetensors.new"]
    for path in left:
        path.write_text(EDIT.text)
    editor_in(tmp_path, tiny_llm)
    assert not any(path.exists() for path in left)


def test_what_is_no_number_is_not_kept_even_if_the_loss_was_one(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    editor = editor_in(tmp_path, tiny_llm, "ft_l:steps=1,rate=1e30,clamp=0")
    record = EDIT.record(SCOPE)
    editor.write([record])
    with pytest.raises(EditFailed, match="no numbers") as failed:
        editor.learn()
    assert failed.value.failed == (record.id,)
    assert editor.pending() == [record.id]


def test_what_was_saved_is_learnt_also_where_no_model_is_open(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    editor = editor_in(tmp_path / "one", tiny_llm, "wise:steps=1")
    record, other = EDIT.record(SCOPE), Edit(prompt="The moon is", target="A").record(SCOPE)
    editor.write([record, other])
    editor.learn()
    editor.save(tmp_path / "saved")
    context = StoreContext(
        folder=tmp_path / "two", llm=UnopenedLLM("tiny"), embedder=HashingEmbedder
    )
    keeper = open_memory("wise:steps=1", context)
    assert isinstance(keeper, Editor)
    keeper.load(tmp_path / "saved")
    assert keeper.digest() == editor.digest()
    keeper.forget([record.id])
    assert [learnt for _, learnt in keeper.edits(SCOPE)] == [True]


def test_of_edits_learnt_together_the_one_to_blame_is_named(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    editor = editor_in(tmp_path, tiny_llm, "memit")
    good, bad = EDIT.record(SCOPE), Edit(prompt="The moon is", target="A").record(SCOPE)
    editor.write([good, bad])
    with pytest.raises(EditFailed, match="names no subject") as failed:
        editor.learn()
    assert failed.value.failed == (bad.id,)
