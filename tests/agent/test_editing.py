"""Edits by the SDK: made, refused, replaced, cancelled, resumed, undone, forgotten, exported.

The model is tiny and random, so nothing is learnt well; what is asked is what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
import torch
from palimpsest.agent.agent import Agent
from palimpsest.agent.jobs import Job
from palimpsest.agent.tools import memory_tools
from palimpsest.apps.opening import open_keeper
from palimpsest.editors.base import Change, Edit, Learnt, Opened, Progress
from palimpsest.editors.editor import Editor
from palimpsest.editors.wise import Wise
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import (
    Cancelled,
    CapabilityError,
    ConfigError,
    EditConflict,
    EditFailed,
    InputError,
    RecordNotFound,
)
from palimpsest.llm.base import GenerationConfig
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import RecordId
from transformers import AutoModelForCausalLM, AutoTokenizer

QUICK = "wise:steps=2"
ENDLESS = "wise:steps=1000000,until=0"
PROMPT, TARGET = "The capital of Atlantis is", "Ys"
OTHERS = tuple(Edit(prompt=f"The moon of planet {at} is", target=f"M{at}") for at in range(4))
Open = Callable[..., Agent]


@pytest.fixture
def open_(tmp_path: Path, tiny_llm: LocalLLM) -> Iterator[Open]:
    """Opens agents on one folder, one after the other."""
    opened: list[Agent] = []

    def open_one(*memories: object, **options: object) -> Agent:
        while opened:
            opened.pop().close()
        given = {"model": tiny_llm, "home": tmp_path / "home", "memories": memories or [QUICK]}
        given["generation"] = GenerationConfig(max_tokens=8)
        opened.append(Agent.open(**given | options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    while opened:
        opened.pop().close()


def kept(agent: Agent) -> list[str]:
    """Every edit of which anything is left, in the ledger or an editor."""
    records = agent.ledger.records(agent.scope.across_sessions(), kinds=["edit"])
    held = [id for editor in agent.editors for id in editor.held()]
    return sorted({*held, *(record.id for record in records)})


def begun(job: Job[Any]) -> None:
    """Wait until a job has got somewhere."""
    deadline = time.monotonic() + 30
    while not job.progress[1] and not job.done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not job.done, job.result()


def test_an_edit_is_behind_the_replies_that_it_changed(open_: Open) -> None:
    agent = open_()
    base = agent.ask("Who are you?", session="a")
    receipt = agent.edit(PROMPT, TARGET)
    assert receipt.edit == Edit(prompt=PROMPT, target=TARGET)
    assert receipt.after.logprob > receipt.before.logprob
    [standing] = agent.edits()
    assert (standing.id, standing.learnt, standing.editor) == (receipt.id, True, "wise")

    reply = agent.ask(PROMPT, session="b")
    assert reply.why.records == (receipt.id,)
    assert (
        receipt.id
        in agent.ledger.get(RecordId(str(reply.record)), agent.scope.across_sessions()).parents
    )
    [memory] = reply.why.memories
    [nearest] = memory.explain["nearest"]
    assert nearest["edit"] == receipt.id and nearest["open"]
    assert base.why.records == ()


def test_the_same_edit_again_is_only_verified(open_: Open) -> None:
    agent = open_()
    first = agent.edit(PROMPT, TARGET)
    assert agent.edit(PROMPT, TARGET).id == first.id
    assert kept(agent) == [first.id]


def test_a_contradiction_names_the_other_edit_and_replaces_it_on_request(open_: Open) -> None:
    agent = open_()
    first = agent.edit(PROMPT, TARGET)
    with pytest.raises(EditConflict, match=f"edit {first.id} answers '{TARGET}'"):
        agent.edit(f"  {PROMPT.upper()}?", "Rome")
    assert kept(agent) == [first.id]

    second = agent.edit(PROMPT, "Rome", replace=True)
    assert [each.id for each in agent.edits()] == [second.id]
    assert [each.current for each in agent.history(first.id)] == [False, True]
    undone = agent.undo(second.id)
    assert undone.ids == (second.id,)
    assert [(each.id, each.learnt) for each in agent.edits()] == [(first.id, True)]


def test_what_is_trusted_less_replaces_nothing(open_: Open) -> None:
    agent = open_()
    first = agent.edit(PROMPT, TARGET)
    digest = agent.editors[0].digest()
    with pytest.raises(InputError, match="trusted less supersedes nothing"):
        agent.edit(PROMPT, "Rome", source="assistant", replace=True)
    assert kept(agent) == [first.id] and agent.editors[0].digest() == digest


def test_two_edits_of_one_call_may_not_contradict_each_other(open_: Open) -> None:
    agent = open_()
    asked = [Edit(prompt=PROMPT, target="Ys"), Edit(prompt=PROMPT, target="Rome")]
    with pytest.raises(EditConflict, match="another of these edits answers 'Ys'"):
        agent.edit_many(asked)
    assert kept(agent) == []
    done = agent.edit_many(asked, replace=True)
    assert [receipt.edit.target for receipt in done.receipts] == ["Rome"]
    assert [failed.edit.target for failed in done.failed] == ["Ys"]


def test_a_correction_of_a_record_cannot_take_the_place_of_an_edit(open_: Open) -> None:
    agent = open_()
    receipt = agent.edit(PROMPT, TARGET)
    with pytest.raises(InputError, match="one is an order to change the weights"):
        agent.correct(receipt.id, "It is Rome.")
    with pytest.raises(InputError, match="no record is behind that reply"):
        agent.correct(agent.ask(PROMPT), "It is Rome.")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"prompt": PROMPT, "target": " "}, "target=' ' says nothing"),
        ({"prompt": PROMPT, "target": "Y", "subject": "Mu"}, "does not occur in prompt"),
        ({"prompt": PROMPT, "target": "Y" * 300}, "window holds 256"),
        ({"prompt": f"{PROMPT}\0", "target": "Y"}, "NUL"),
    ],
)
def test_what_cannot_be_an_edit_leaves_nothing(open_: Open, edit: dict[str, Any], why: str) -> None:
    agent = open_()
    empty = agent.editors[0].digest()
    with pytest.raises((InputError, EditFailed), match=why):
        agent.edit(**edit)
    assert kept(agent) == [] and agent.editors[0].digest() == empty


def test_a_loss_that_is_no_number_leaves_nothing_and_keeps_the_others(open_: Open) -> None:
    agent = open_("wise:steps=9,beta=3e38,gamma=3e38")
    with pytest.raises(EditFailed, match="choose a lower rate"):
        agent.edit(PROMPT, TARGET)
    assert kept(agent) == []
    done = agent.edit_many(OTHERS[:2])
    assert [failed.edit for failed in done.failed] == list(OTHERS[:2]) and not done.verified
    assert "lower rate" in done.failed[0].why and kept(agent) == []


def test_of_many_one_that_fails_does_not_keep_the_others_from_it(open_: Open) -> None:
    agent = open_()
    long = Edit(prompt="Too long is", target="Y" * 300)
    done = agent.edit_many([OTHERS[0], long, OTHERS[1]])
    assert [receipt.edit for receipt in done.receipts] == list(OTHERS[:2])
    assert [failed.edit for failed in done.failed] == [long]
    assert [each.edit for each in agent.edits()] == list(OTHERS[:2])


def test_a_cancelled_edit_leaves_nothing_and_what_it_was_to_replace_holds(open_: Open) -> None:
    agent = open_()
    first = agent.edit(PROMPT, TARGET)
    digest = agent.editors[0].digest()
    cancel = Event()
    with pytest.raises(Cancelled):
        agent.edit(PROMPT, "Rome", replace=True, cancel=cancel, progress=lambda *_: cancel.set())
    assert kept(agent) == [first.id] and agent.editors[0].digest() == digest
    assert [each.learnt for each in agent.edits()] == [True]


def test_an_edit_cancelled_in_the_middle_leaves_nothing(open_: Open) -> None:
    agent = open_(ENDLESS)
    empty = agent.editors[0].digest()
    job = agent.start_edit(PROMPT, TARGET)
    begun(job)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(30)
    assert kept(agent) == [] and agent.editors[0].digest() == empty


def test_many_cancelled_in_the_middle_keep_what_was_learnt_and_go_on_from_there(
    open_: Open,
) -> None:
    agent = open_()
    cancel = Event()

    def stop(done: int, expected: int) -> None:
        if done >= expected / 2:
            cancel.set()

    done = agent.edit_many(OTHERS, progress=stop, cancel=cancel)
    assert done.cancelled and [receipt.edit for receipt in done.receipts] == list(OTHERS[:2])
    assert [each.edit for each in agent.edits()] == list(OTHERS[:2])
    again = agent.edit_many(OTHERS)
    assert [receipt.edit for receipt in again.receipts] == list(OTHERS[2:])
    assert list(again.skipped) == [receipt.id for receipt in done.receipts]


def test_what_a_crash_left_unlearnt_is_learnt_the_next_time(open_: Open) -> None:
    agent = open_()
    record = OTHERS[0].record(agent.scope)
    agent.append([record])
    agent = open_()
    assert [(each.id, each.learnt) for each in agent.edits()] == [(record.id, False)]
    assert agent.resume_edits() == (record.id,) and agent.resume_edits() == ()
    agent.append([OTHERS[1].record(agent.scope)])
    agent.derive()
    assert all(each.learnt for each in agent.edits())


def test_editing_blocks_no_turn_and_changes_no_other_reply(open_: Open) -> None:
    agent = open_(ENDLESS)
    began = time.perf_counter()
    alone = agent.ask("Who are you?", session="alone")
    before = time.perf_counter() - began
    job = agent.start_edit(PROMPT, TARGET)
    begun(job)
    began = time.perf_counter()
    beside = agent.ask("Who are you?", session="beside")
    took = time.perf_counter() - began
    assert not job.done, "the turn waited for the edit"
    assert beside.text == alone.text
    assert took < 10 * before + 2
    job.close()


def test_closing_the_agent_ends_its_jobs(open_: Open) -> None:
    agent = open_(ENDLESS)
    job = agent.start_edit(PROMPT, TARGET)
    begun(job)
    agent.close()
    assert job.done
    with pytest.raises(Cancelled):
        job.result()
    assert kept(open_()) == []


def test_undoing_leaves_replies_and_forgetting_takes_them(open_: Open, tmp_path: Path) -> None:
    agent = open_()
    first, second = (agent.edit(edit.prompt, edit.target) for edit in OTHERS[:2])
    reply = agent.ask(OTHERS[0].prompt)
    agent.undo(first.id)
    assert kept(agent) == [second.id]
    assert agent.turns()[-1].reply is not None

    reply = agent.ask(OTHERS[1].prompt, session="second")
    assert reply.why.records == (second.id,)
    report = agent.forget(second.id)
    assert report.residue == 0 and kept(agent) == []
    assert reply.record in {record.id for record in report.records}
    assert not list((tmp_path / "home").rglob("changes/*"))


def test_undo_names_what_is_no_edit(open_: Open) -> None:
    agent = open_()
    fact = agent.remember("The sea is blue.")
    for ids in ((), (fact.id,)):
        with pytest.raises(InputError, match="are no edits"):
            agent.undo(*ids)
    with pytest.raises(RecordNotFound):
        agent.undo("01ARZ3NDEKTSV4RRFFQ69G5FAV")


def test_edits_of_one_user_are_not_another_ones(open_: Open) -> None:
    agent = open_()
    receipt = agent.edit(PROMPT, TARGET, user="maria")
    assert agent.edits() == [] and len(agent.edits(user="maria")) == 1
    assert agent.ask(PROMPT, user="bob").why.records == ()
    assert agent.ask(PROMPT, user="maria").why.records == (receipt.id,)
    with pytest.raises(RecordNotFound):
        agent.undo(receipt.id, user="bob")


def test_edits_just_hold_where_the_weights_are_here(open_: Open) -> None:
    here = open_(memories=None, embedder=HashingEmbedder())
    assert [memory.name for memory in here.memories] == ["scm", "wise", "o3"]
    served = open_(memories=None, embedder=HashingEmbedder(), model=ScriptedLLM(lambda _: "Hm."))
    assert [memory.name for memory in served.memories] == ["scm"]
    with pytest.raises(ConfigError, match=r"memories=\['scm', 'wise'\]"):
        served.edit(PROMPT, TARGET)
    with pytest.raises(ConfigError, match="not one of the agent's own"):
        open_("recent", tools=["correct"])


def test_of_several_editors_one_must_be_named_and_has_the_edit_alone(
    open_: Open, tmp_path: Path, tiny_llm: LocalLLM
) -> None:
    context = StoreContext(folder=tmp_path / "two", llm=tiny_llm, embedder=HashingEmbedder)
    agent = open_(QUICK, Editor("second", context, Wise(steps=2, depth=0.0)))
    with pytest.raises(ConfigError, match=r"\['second', 'wise'\]; name one"):
        agent.edit(PROMPT, TARGET)
    receipt = agent.edit(PROMPT, TARGET, editor="second")
    assert [(each.id, each.editor) for each in agent.edits()] == [(receipt.id, "second")]
    assert agent.verify_edits()[0].id == receipt.id
    assert agent.forget(receipt.id).residue == 0


def test_the_tool_edits_as_the_assistant(open_: Open) -> None:
    agent = open_()
    own = memory_tools(agent)["correct"]
    said = own.invoke({"question": PROMPT, "answer": TARGET})
    [standing] = agent.edits()
    assert said.startswith(f"edited as {standing.id}")
    assert agent.ledger.get(standing.id, agent.scope.across_sessions()).source == "assistant"
    agent.edit(PROMPT, "Rome", replace=True)
    with pytest.raises(InputError, match="trusted less"):
        own.invoke({"question": PROMPT, "answer": TARGET})


def test_keepers_work_on_a_folder_with_edits(open_: Open, tmp_path: Path) -> None:
    agent = open_(memories=None, embedder=HashingEmbedder())
    receipt = agent.edit(PROMPT, TARGET)
    agent.close()
    home = tmp_path / "home"
    with open_keeper(home, "nobody", None, "default", read_only=True) as keeper:
        assert [memory.name for memory in keeper.memories] == ["scm", "wise"]
        assert keeper.history(receipt.id)[0].kind == "edit"
        assert keeper.stats().events == 1
        assert [each.learnt for each in keeper.edits()] == [True]
    assert Agent.doctor(home=home).healthy
    with open_keeper(home, "nobody", None, "default") as keeper:
        keeper.backup(tmp_path / "backup.zip")
        assert keeper.forget(receipt.id).residue == 0
        assert keeper.edits() == []


@dataclass(frozen=True)
class Flat:
    """Adds to one matrix, for every prompt: what a checkpoint can hold."""

    adds: ClassVar[bool] = True
    layers: frozenset[str]
    change: Change

    def open(self, prompts: Sequence[str]) -> Opened:
        [layer] = self.layers
        added = self.change.tensors["weight"]
        return Opened(deltas={layer: lambda inputs, output: output + inputs @ added.T})

    def explain(self, prompt: str) -> Mapping[str, str]:
        return {}

    def merged(self) -> Mapping[str, torch.Tensor]:
        [layer] = self.layers
        return {layer: self.change.tensors["weight"]}


@dataclass(frozen=True)
class Flatly:
    """A method that learns the same of every edit."""

    name: ClassVar[str] = "flat"
    applied: ClassVar[frozenset[str]] = frozenset()
    mergeable: ClassVar[bool] = True
    batch: int = 1

    def lane(self, edit: Edit) -> str:
        return "all"

    def learn(
        self,
        bench: Workbench,
        edits: Sequence[Edit],
        before: Sequence[Learnt],
        progress: Progress,
        cancel: Event,
    ) -> list[Change]:
        weight = bench.weight(bench.down(1))
        draw = torch.Generator().manual_seed(0)
        return [Change(tensors={"weight": torch.randn(weight.shape, generator=draw)})]

    def patch(self, bench: Workbench, learnt: Sequence[Learnt]) -> Flat:
        return Flat(frozenset({bench.down(1)}), learnt[-1].change)


@torch.no_grad()
def test_an_exported_model_answers_in_plain_transformers_as_here(
    open_: Open, tmp_path: Path, tiny_llm: LocalLLM
) -> None:
    context = StoreContext(folder=tmp_path / "flat", llm=tiny_llm, embedder=HashingEmbedder)
    agent = open_(Editor("flat", context, Flatly()))
    with pytest.raises(InputError, match="nothing to export"):
        agent.export_model(tmp_path / "model")
    agent.edit(PROMPT, TARGET)
    reply = agent.ask(PROMPT)
    folder = agent.export_model(tmp_path / "model")
    assert list(folder.glob("*.safetensors"))
    with pytest.raises(ConfigError, match="is there already"):
        agent.export_model(folder)

    plain = AutoModelForCausalLM.from_pretrained(folder)
    merged = LocalLLM(plain, AutoTokenizer.from_pretrained(folder), name="merged")
    agent = open_("recent", model=merged)
    assert agent.ask(PROMPT, session="merged").text == reply.text
    agent = open_("recent")
    assert agent.ask(PROMPT, session="base").text != reply.text


def test_what_a_gate_decides_is_not_exported(open_: Open, tmp_path: Path) -> None:
    agent = open_()
    agent.edit(PROMPT, TARGET)
    with pytest.raises(CapabilityError, match="holds no such gate; methods that can be exported"):
        agent.export_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()
