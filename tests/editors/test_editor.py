"""An editor as the docs tell it: an edit is learnt, verified, asked in other words, and undone."""

from pathlib import Path

import pytest
import torch
from palimpsest.editors.base import Edit
from palimpsest.editors.editor import Editor
from palimpsest.llm.local import LocalLLM
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
