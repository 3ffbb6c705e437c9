"""What every editing method holds to. A new method joins by one row.

`quick` are settings under which it learns on the tiny random model, where only the mechanics count;
`real` are those under which the embedded model says a new target within a few seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from palimpsest.editors.base import Edit, Learnt, Method, Patch
from palimpsest.editors.editor import Editor
from palimpsest.editors.measuring import Question
from palimpsest.editors.registry import METHODS
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import Cancelled, ConfigError, EditFailed
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import matrix, patched
from palimpsest.memory.base import StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import RecordId, Scope
from palimpsest.memory.registry import EDITORS, open_memory

SCOPE = Scope(user="maria")
EDITS = (
    Edit(prompt="The capital of Atlantis is", target="Poseidonis", subject="Atlantis"),
    Edit(prompt="Toko Yasuda plays the", target="piano", subject="Toko Yasuda"),
    Edit(prompt="Norway is a country in", target="Asia", subject="Norway"),
)


@dataclass(frozen=True)
class Row:
    """A method as these tests run it.

    Args:
        always: it changes every prompt, so its changes can be merged into a checkpoint.
        subject: it needs to know the subject.
        bad: a setting that it has to refuse.
    """

    quick: Mapping[str, Any] = field(default_factory=dict)
    real: Mapping[str, Any] = field(default_factory=dict)
    always: bool = True
    subject: bool = False
    bad: Mapping[str, Any] = field(default_factory=lambda: {"steps": 0})


FEW = {"steps": 3, "samples": 300}
ROWS = {
    "alphaedit": Row(
        {**FEW, "batch": 1}, {"samples": 3000, "contexts": 1, "first": 0.25}, subject=True
    ),
    "ft_l": Row({"steps": 3}, {}),
    "grace": Row({"steps": 3}, {}, always=False),
    "lora": Row({"steps": 3}, {}),
    "memit": Row({**FEW, "batch": 2}, {"samples": 3000, "contexts": 1}, subject=True),
    "rome": Row(FEW, {"samples": 3000, "contexts": 1}, subject=True),
    "ultraedit": Row({"batch": 2}, {}, bad={"rate": 0.0}),
    "wise": Row({"steps": 3, "contexts": 1}, {}, always=False),
}
names = pytest.mark.parametrize("name", sorted(ROWS))


def built(name: str, settings: Mapping[str, Any]) -> Method:
    method: Method = METHODS.build(name, **settings)
    return method


def bench_of(llm: LocalLLM, folder: Path) -> Workbench:
    return Workbench(llm.model, llm.tokenizer, folder)


def editor_in(folder: Path, llm: LocalLLM, name: str) -> Editor:
    context = StoreContext(folder=folder, llm=llm, embedder=HashingEmbedder)
    editor = open_memory(name, context, ROWS[name].quick)
    assert isinstance(editor, Editor)
    return editor


def learnt_by(method: Method, bench: Workbench, *edits: Edit) -> list[Learnt]:
    before: list[Learnt] = []
    for at in range(0, len(edits), method.batch):
        together = edits[at : at + method.batch]
        changes = method.learn(bench, together, before, lambda done, total: None, Event())
        before += [
            Learnt(id=RecordId(f"{at + index}"), edit=edit, change=change)
            for index, (edit, change) in enumerate(zip(together, changes, strict=True))
        ]
    return before


@torch.no_grad()
def logits(llm: LocalLLM, patch: Patch | None, prompt: str) -> torch.Tensor:
    ids = torch.tensor([llm.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    deltas = patch.open([prompt]).deltas if patch else {}
    with patched(llm.model, deltas):
        found: torch.Tensor = llm.model(ids).logits
    return found


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == set(METHODS) == set(EDITORS)


@pytest.mark.model
@names
def test_the_model_says_the_target_and_its_weights_are_as_before(
    name: str, smollm2: LocalLLM, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = [weight.clone() for weight in smollm2.model.parameters()]
    bench = bench_of(smollm2, tmp_path_factory.getbasetemp() / "shared-bench")
    method = built(name, ROWS[name].real)
    learnt = learnt_by(method, bench, EDITS[1])
    question = [Question(EDITS[1].prompt, EDITS[1].target)]
    [before] = bench.prober.answers(question)
    [after] = bench.prober.answers(question, method.patch(bench, learnt))
    assert after.logprob > before.logprob
    assert before.accuracy < 1 == after.accuracy
    assert all(map(torch.equal, weights, smollm2.model.parameters()))


@names
def test_what_is_learnt_twice_is_equal_bit_for_bit(
    name: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    method = built(name, ROWS[name].quick)
    once, again = (
        learnt_by(method, bench_of(tiny_llm, tmp_path / folder), *EDITS) for folder in ("a", "b")
    )
    assert [each.change.digest for each in once] == [each.change.digest for each in again]
    assert len({each.change.digest for each in once}) == len(EDITS)


@names
def test_undoing_any_edit_leaves_what_the_others_alone_would_have_made(
    name: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    records = [edit.record(SCOPE) for edit in EDITS]
    whole = editor_in(tmp_path / "whole", tiny_llm, name)
    whole.write(records)
    whole.learn()
    whole.save(tmp_path / "saved")
    for undone in records:
        editor = editor_in(tmp_path / f"without-{undone.id}", tiny_llm, name)
        editor.load(tmp_path / "saved")
        assert editor.digest() == whole.digest()
        editor.forget([undone.id])
        editor.learn()

        rest = editor_in(tmp_path / f"rest-{undone.id}", tiny_llm, name)
        rest.write([record for record in records if record is not undone])
        rest.learn()
        assert editor.digest() == rest.digest() != whole.digest()
        answers = [
            tuple(logits(tiny_llm, patch, edit.prompt) for edit in EDITS)
            for patch in (editor.patch(SCOPE), rest.patch(SCOPE), None)
        ]
        assert all(map(torch.equal, answers[0], answers[1]))
        assert not all(map(torch.equal, answers[0], answers[2]))


@names
def test_what_is_saved_and_loaded_answers_the_same(
    name: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    editor = editor_in(tmp_path / "one", tiny_llm, name)
    editor.write([edit.record(SCOPE) for edit in EDITS[:2]])
    editor.learn()
    editor.save(tmp_path / "saved")
    other = editor_in(tmp_path / "other", tiny_llm, name)
    other.load(tmp_path / "saved")
    assert not other.pending()
    assert other.digest() == editor.digest()
    one, two = (logits(tiny_llm, e.patch(SCOPE), EDITS[0].prompt) for e in (editor, other))
    assert torch.equal(one, two)


@names
def test_a_cancelled_edit_leaves_nothing(name: str, tiny_llm: LocalLLM, tmp_path: Path) -> None:
    editor = editor_in(tmp_path, tiny_llm, name)
    editor.write([EDITS[0].record(SCOPE)])
    digest, cancel = editor.digest(), Event()
    with pytest.raises(Cancelled):
        editor.learn(progress=lambda done, total: cancel.set(), cancel=cancel)
    assert editor.digest() == digest
    assert editor.patch(SCOPE) is None
    assert editor.learn()


@names
def test_a_patch_of_no_edits_changes_nothing(name: str, tiny_llm: LocalLLM, tmp_path: Path) -> None:
    patch = built(name, ROWS[name].quick).patch(bench_of(tiny_llm, tmp_path), [])
    assert not patch.layers
    assert not patch.open([EDITS[0].prompt]).deltas
    assert not patch.merged()


@names
def test_a_merged_checkpoint_answers_as_the_patch_does(
    name: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of(tiny_llm, tmp_path)
    method = built(name, ROWS[name].quick)
    patch = method.patch(bench, learnt_by(method, bench, *EDITS))
    merged = patch.merged()
    assert (merged is not None) == ROWS[name].always
    if merged is not None:
        expected = logits(tiny_llm, patch, EDITS[1].prompt)
        with torch.no_grad():
            for layer, change in merged.items():
                matrix(tiny_llm.model.get_submodule(layer)).add_(change)
        assert merged.keys() == patch.layers
        torch.testing.assert_close(logits(tiny_llm, None, EDITS[1].prompt), expected)


@names
def test_an_edit_without_a_subject_is_learnt_or_refused_with_the_remedy(
    name: str, tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    bench = bench_of(tiny_llm, tmp_path)
    method = built(name, ROWS[name].quick)
    nameless = Edit(prompt="The sea is", target="green")
    if ROWS[name].subject:
        with pytest.raises(EditFailed, match="name the subject"):
            learnt_by(method, bench, nameless)
    else:
        assert learnt_by(method, bench, nameless)


@names
def test_a_setting_that_makes_no_sense_is_refused(name: str) -> None:
    [(setting, value)] = ROWS[name].bad.items()
    with pytest.raises(ConfigError, match=f"{name}: {setting}={value} must be"):
        built(name, {setting: value})


def test_many_thin_changes_cost_one_product(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    """As a sum they are dense; it equals the sum of each."""
    bench = bench_of(tiny_llm, tmp_path)
    method = built("rome", ROWS["rome"].quick)
    [one] = learnt_by(method, bench, EDITS[0])
    many = [Learnt(id=RecordId(f"{at}"), edit=one.edit, change=one.change) for at in range(60)]
    single, summed = (method.patch(bench, edits).merged() for edits in ([one], many))
    assert single is not None
    assert summed is not None
    for layer, change in single.items():
        torch.testing.assert_close(summed[layer], 60 * change)


def test_two_prompts_with_other_targets_share_the_space_between_them(
    tiny_llm: LocalLLM, tmp_path: Path
) -> None:
    """GRACE: each of them is answered by its own value, however near the other one is."""
    bench = bench_of(tiny_llm, tmp_path)
    method = built("grace", {"steps": 3, "radius": 5.0})
    pairs = [Edit(prompt=f"{place} lies in", target=f"{place[::-1]}") for place in ("Oslo", "Rome")]
    learnt = learnt_by(method, bench, *pairs)
    alone = method.patch(bench, learnt[:1])
    both = method.patch(bench, learnt)
    prompts = [edit.prompt for edit in pairs]

    def routes(patch: Patch) -> list[str | None]:
        return [each.entry if each else None for each in patch.open(prompts).verdicts]

    assert routes(alone) == ["0", "0"]
    assert routes(both) == ["0", "1"]
    assert routes(method.patch(bench, learnt[1:])) == ["1", "1"]
