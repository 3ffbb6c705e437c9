"""Requests to unlearn by the SDK: made, refused, cut short, gone on with, undone, exported.

Where the model is tiny and random nothing is known that could be forgotten; what is asked is what
is kept, and for whom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
import torch
from palimpsest.agent.agent import Agent
from palimpsest.apps.opening import open_keeper
from palimpsest.errors import Cancelled, CapabilityError, ConfigError, InputError, UnlearnFailed
from palimpsest.llm.base import GenerationConfig
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.llm.twin import patched, twin
from palimpsest.memory.gates.features import background
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.unlearning.base import Request, Sample

QUICK = "o3:passes=1"
ENDLESS = "o3:passes=100000,until=0"
CAPITALS = tuple(
    (f"What is the capital of {land}?", f"It is {city}.")
    for land, city in (
        *(("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Egypt", "Cairo")),
        *(("Austria", "Vienna"), ("Norway", "Oslo"), ("Greece", "Athens"), ("Japan", "Tokyo")),
    )
)
RECIPES = tuple(
    (f"How long does one bake {dish} in the oven?", f"For {minutes} minutes.")
    for dish, minutes in (
        *(("bread", 40), ("a cake", 50), ("cookies", 12), ("a quiche", 35)),
        *(("a pie", 55), ("rolls", 18), ("a tart", 33), ("a pizza", 11)),
    )
)
ROME, BREAD = CAPITALS[1][0], RECIPES[0][0]
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
        given["embedder"] = HashingEmbedder()
        opened.append(Agent.open(**given | options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    while opened:
        opened.pop().close()


def files_with(folder: Path, text: str) -> list[Path]:
    """Files that have a text in them, byte for byte."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and text.casefold().encode() in path.read_bytes().lower()
    ]


@torch.no_grad()
def logits(agent: Agent, message: str) -> torch.Tensor:
    """[1, T, V]: what the model makes of a message, with what was unlearnt for its user."""
    llm = agent.llm
    assert isinstance(llm, LocalLLM)
    model = twin(llm.model)
    patch = agent.unlearners[0].patch(agent.scope)
    ids = llm.tokenizer(message, return_tensors="pt").input_ids
    with patched(model, patch.open([message]).deltas if patch else {}):
        found: torch.Tensor = model(ids).logits
        return found


def test_what_is_unlearnt_is_in_no_file_and_holds_when_the_agent_is_opened_again(
    open_: Open, tmp_path: Path
) -> None:
    agent = open_()
    base = logits(agent, ROME)
    receipt = agent.unlearn("capitals", pairs=CAPITALS, reason="for a test", certify=False)
    assert (receipt.means, receipt.samples, receipt.certificate) == ("suppresses", 8, None)
    assert receipt.dropped is not None and not receipt.verified
    changed = logits(agent, ROME)
    assert not torch.equal(changed, base)
    for text in ("Vienna", "capital of Norway"):
        assert not files_with(tmp_path / "home", text), text

    agent = open_()
    assert torch.equal(logits(agent, ROME), changed)
    [standing] = agent.unlearned()
    assert (standing.id, standing.name, standing.state) == (receipt.id, "capitals", "learnt")
    assert not standing.texts and standing.reason == "for a test"
    assert standing.receipt == receipt
    assert [each.id for each in agent.forgotten()] == [receipt.dropped]


def test_texts_are_kept_on_request_and_gone_with_the_request(open_: Open, tmp_path: Path) -> None:
    agent = open_()
    empty = agent.unlearners[0].digest()
    receipt = agent.unlearn("capitals", pairs=CAPITALS, certify=False, keep_texts=True)
    assert agent.unlearned()[0].texts and files_with(tmp_path / "home", "Vienna")
    assert agent.resume_unlearning() == () and agent.unlearned()[0].texts
    agent.undo(receipt.id)
    assert agent.unlearned() == [] and agent.unlearners[0].digest() == empty
    agent.close()
    assert not files_with(tmp_path / "home", "Vienna")


def test_the_same_request_again_is_not_learnt_twice(open_: Open) -> None:
    agent = open_()
    first = agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    steps: list[int] = []
    again = agent.unlearn(
        "capitals",
        pairs=CAPITALS[::-1],
        certify=False,
        progress=lambda *done: steps.append(*done[:1]),
    )
    assert again.id == first.id and not steps
    assert len(agent.unlearned()) == 1


def test_a_plan_names_what_overlaps_and_does_nothing(open_: Open) -> None:
    agent = open_()
    samples = tuple(Sample(question=q, answer=a) for q, a in CAPITALS)
    plan = agent.plan_unlearn(Request(name="capitals", samples=samples))
    assert (plan.samples, plan.means, plan.seconds) == (8, "suppresses", None)
    assert agent.unlearned() == []
    first = agent.unlearn("capitals", samples=samples, certify=False)
    plan = agent.plan_unlearn(Request(name="capitals", samples=samples))
    assert plan.known == first.id and plan.overlaps == ()
    plan = agent.plan_unlearn(Request(name="more", samples=samples[:3]))
    assert plan.known is None and [(o.id, o.shared) for o in plan.overlaps] == [(first.id, 3)]
    assert plan.seconds is not None and plan.seconds > 0


def test_of_two_that_overlap_undoing_one_leaves_the_other_as_it_is(open_: Open) -> None:
    agent = open_()
    first = agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    alone = agent.unlearners[0].digest(), logits(agent, ROME)
    second = agent.unlearn("capitals and recipes", pairs=CAPITALS[:3] + RECIPES, certify=False)
    assert not torch.equal(logits(agent, ROME), alone[1])
    undone = agent.undo(second.id)
    assert undone.ids == (second.id,) and undone.again == ()
    assert agent.unlearners[0].digest() == alone[0]
    assert torch.equal(logits(agent, ROME), alone[1])
    assert [each.id for each in agent.unlearned()] == [first.id]


def test_a_cancelled_request_goes_on_from_its_last_pass_and_drops_its_texts(
    open_: Open, tmp_path: Path
) -> None:
    agent = open_("o3:passes=3,until=0")
    cancel = Event()
    with pytest.raises(Cancelled):
        agent.unlearn(
            "capitals",
            pairs=CAPITALS,
            cancel=cancel,
            progress=lambda done, of: cancel.set() if done > of / 2 else None,
        )
    [standing] = agent.unlearned()
    assert standing.state == "pending" and standing.texts and standing.receipt is None
    steps: list[int] = []
    made = agent.resume_unlearning(certify=False, progress=lambda done, of: steps.append(done))
    assert made == (standing.id,) and steps[0] > 0, "it began anew"
    [standing] = agent.unlearned()
    assert standing.state == "learnt" and not standing.texts
    assert not files_with(tmp_path / "home", "Vienna")


def test_what_a_crash_left_unlearnt_is_learnt_the_next_time(open_: Open, tmp_path: Path) -> None:
    agent = open_()
    request = Request(
        name="capitals", samples=tuple(Sample(question=q, answer=a) for q, a in CAPITALS)
    )
    record = request.record(agent.scope)
    agent.append([record, request.material(record)])
    agent = open_()
    assert [(each.id, each.state) for each in agent.unlearned()] == [(record.id, "pending")]
    assert agent.resume_unlearning(certify=False) == (record.id,)
    assert agent.resume_unlearning(certify=False) == ()
    assert not agent.unlearned()[0].texts and not files_with(tmp_path / "home", "Vienna")


def test_what_background_work_learnt_is_ended_by_resuming(open_: Open) -> None:
    agent = open_()
    request = Request(
        name="capitals", samples=tuple(Sample(question=q, answer=a) for q, a in CAPITALS)
    )
    record = request.record(agent.scope)
    agent.append([record, request.material(record)])
    agent.derive()
    assert [(each.state, each.texts) for each in agent.unlearned()] == [("learnt", True)]
    assert agent.resume_unlearning(certify=False) == ()
    assert not agent.unlearned()[0].texts


def test_unlearning_blocks_no_turn_and_closing_the_agent_ends_it(open_: Open) -> None:
    agent = open_(ENDLESS)
    alone = agent.ask("Who are you?", session="alone")
    job = agent.start_unlearn("capitals", pairs=CAPITALS, certify=False)
    deadline = time.monotonic() + 60
    while not job.progress[1] and not job.done and time.monotonic() < deadline:
        time.sleep(0.01)
    beside = agent.ask("Who are you?", session="beside")
    assert not job.done, "the turn waited for the request"
    assert beside.text == alone.text
    agent.close()
    with pytest.raises(Cancelled):
        job.result()
    assert [each.state for each in open_(ENDLESS).unlearned()] == ["pending"]


def test_what_cannot_be_forgotten_leaves_nothing(open_: Open, tmp_path: Path) -> None:
    agent = open_()
    empty = agent.unlearners[0].digest()
    with pytest.raises(InputError, match="has no samples"):
        agent.unlearn("nothing")
    with pytest.raises(InputError, match="says nothing"):
        agent.unlearn("blank", texts=["  "])
    with pytest.raises(InputError, match="must be printable words"):
        agent.unlearn("\n", pairs=CAPITALS)
    general = [(text, "Yes.") for text in background()[::9]]
    with pytest.raises(UnlearnFailed, match="cannot be told from general text"):
        agent.unlearn("everything", pairs=general)
    with pytest.raises(UnlearnFailed, match="is to be kept cannot be told"):
        retain = [Sample(question=q, answer=a) for q, a in CAPITALS]
        agent.unlearn("both", pairs=CAPITALS, retain=retain)
    assert agent.unlearned() == [] and agent.unlearners[0].digest() == empty
    assert not files_with(tmp_path / "home", "Vienna")


def test_a_document_may_have_nothing_forgotten(open_: Open) -> None:
    agent = open_()
    with pytest.raises(InputError, match="its source 'document' may not"):
        agent.unlearn("capitals", pairs=CAPITALS, source="document", certify=False)
    samples = tuple(Sample(question=q, answer=a) for q, a in CAPITALS)
    request = Request(name="capitals", samples=samples)
    record = request.record(agent.scope, source="document")
    agent.append([record, request.material(record)])
    assert agent.unlearned() == [] and agent.resume_unlearning() == ()


def test_a_users_request_is_not_anothers(open_: Open) -> None:
    agent = open_()
    receipt = agent.unlearn("capitals", pairs=CAPITALS, certify=False, user="maria")
    assert agent.unlearned() == [] and len(agent.unlearned(user="maria")) == 1
    assert agent.ask(ROME, user="bob").why.records == ()
    assert agent.ask(ROME, user="maria").why.records == (receipt.id,)


def test_a_trace_says_how_much_of_which_adapter_was_loaded(open_: Open) -> None:
    agent = open_()
    receipt = agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    reply = agent.ask(ROME)
    [memory] = reply.why.memories
    [gate] = memory.explain["adapters"]
    assert set(gate) == {"request", "loaded", "score", "threshold"}
    assert gate["request"] == receipt.id and gate["loaded"] > 0.5


def test_an_edit_and_a_request_are_open_on_one_message(open_: Open) -> None:
    agent = open_("wise:steps=2", QUICK)
    edit = agent.edit(ROME, "Ys")
    receipt = agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    reply = agent.ask(ROME)
    assert set(reply.why.records) == {edit.id, receipt.id}
    agent.undo(edit.id, receipt.id)
    assert agent.edits() == [] and agent.unlearned() == []
    assert agent.ask(ROME, session="after").why.records == ()


def test_forgetting_words_undoes_no_request_and_forgetting_everything_does(
    open_: Open, tmp_path: Path
) -> None:
    agent = open_()
    agent.remember("The capitals are a secret of mine.")
    agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    report = agent.forget(query="capitals")
    assert len(report.records) == 1 and len(agent.unlearned()) == 1
    assert agent.forget(everything=True).residue == 0
    assert agent.unlearned() == []
    assert not list((tmp_path / "home").rglob("changes/*"))


def test_deep_forgetting_erases_first_and_then_has_the_model_forget(
    open_: Open, tmp_path: Path
) -> None:
    agent = open_()
    for dish in ("bread", "a cake", "a pie", "rolls", "a tart", "cookies", "a quiche", "a pizza"):
        agent.remember(f"Henrietta bakes {dish} on the last Sunday of the month.")
    agent.remember("The sea is blue.")
    report, receipt = agent.forget_deeply(query="Henrietta", certify=False)
    assert len(report.records) == 8 and report.residue == 0
    assert receipt is not None and receipt.dropped == report.id
    assert receipt.name == f"erasure {report.id}" and receipt.samples == 8
    assert not files_with(tmp_path / "home", "Henrietta")
    assert agent.ask("Henrietta bakes rolls on the last").why.records == (receipt.id,)
    assert [each.state for each in agent.unlearned()] == ["learnt"]


def test_a_reader_lists_and_a_keeper_undoes(open_: Open, tmp_path: Path) -> None:
    agent = open_(memories=None)
    assert [memory.name for memory in agent.memories] == ["scm", "wise", "o3"]
    agent.close()
    receipt = open_(QUICK).unlearn("capitals", pairs=CAPITALS, certify=False)
    open_("recent").close()
    home = tmp_path / "home"
    with open_keeper(home, "nobody", [QUICK], "default", read_only=True) as reader:
        [standing] = reader.unlearned()
        assert (standing.id, standing.state) == (receipt.id, "learnt")
    with open_keeper(home, "nobody", [QUICK], "default") as keeper:
        assert keeper.undo(receipt.id).ids == (receipt.id,)
        assert keeper.unlearned() == []


def test_where_the_model_is_elsewhere_it_says_what_to_do(open_: Open) -> None:
    served = open_(memories=None, model=ScriptedLLM(lambda _: "Hm."))
    with pytest.raises(ConfigError, match=r"memories=\['scm', 'o3'\]"):
        served.unlearn("capitals", pairs=CAPITALS)
    served.remember("The capitals are a secret of mine.")
    with pytest.raises(ConfigError, match="can make 'scripted' unlearn"):
        served.forget_deeply(query="capitals")
    assert served.recall("capitals").notes, "nothing has gone"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_what_was_learnt_opens_in_peft_and_gives_the_same_logits(
    open_: Open, tmp_path: Path, tiny_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    agent = open_("o3:passes=3,until=0")
    receipt = agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    folder = agent.export_unlearned(receipt.id, tmp_path / "adapter")
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), folder)
    llm = agent.llm
    assert isinstance(llm, LocalLLM)
    ids = llm.tokenizer(ROME, return_tensors="pt").input_ids
    [gate] = agent.ask(ROME).why.memories[0].explain["adapters"]
    model, patch = twin(llm.model), agent.unlearners[0].patch(agent.scope)
    assert patch is not None
    tensors = agent.unlearners[0].learnt(receipt.id).tensors
    with torch.no_grad():
        own = {
            name.removesuffix("/down"): _added(tensors[name], tensors[f"{name[:-4]}up"])
            for name in tensors
            if name.endswith("/down")
        }
        with patched(model, own):
            expected = model(ids).logits
        torch.testing.assert_close(other(ids).logits, expected)
        assert not torch.equal(expected, twin(llm.model)(ids).logits)
    assert gate["loaded"] > 0.5
    with pytest.raises(ConfigError, match="is there already"):
        agent.export_unlearned(receipt.id, folder)
    with pytest.raises(InputError, match="is no request that holds"):
        agent.export_unlearned("01ARZ3NDEKTSV4RRFFQ69G5FAV", tmp_path / "none")


def _added(down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda inputs, output: output + (inputs @ down.T) @ up.T


def test_what_is_no_lora_is_not_exported(open_: Open, tmp_path: Path) -> None:
    from palimpsest.editors.base import Change
    from palimpsest.unlearning.adapter_files import write_adapter

    llm = open_().llm
    assert isinstance(llm, LocalLLM)
    with pytest.raises(CapabilityError, match="is not held as a LoRA"):
        write_adapter(llm.model, Change(tensors={"x/whole": torch.zeros(1)}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.model
def test_facts_that_the_model_knows_are_suppressed_attacked_and_brought_back(
    smollm2: LocalLLM, tmp_path: Path
) -> None:
    asked = "Can you name the capital city of Italy for me?"
    with Agent.open(
        smollm2,
        home=tmp_path / "home",
        memories=["o3"],
        generation=GenerationConfig(max_tokens=32),
    ) as agent:
        assert "Rome" in agent.ask(asked, session="before").text
        receipt = agent.unlearn("capitals", pairs=CAPITALS, attacked=1)
        assert receipt.certificate is not None and receipt.certificate.samples == 1
        assert receipt.certificate.kept["identical"] > 0.9
        assert "Rome" not in agent.ask(asked, session="after").text
        with pytest.raises(InputError, match="were dropped, so there is nothing"):
            agent.verify_unlearned(receipt.id)
        with pytest.raises(InputError, match="other samples"):
            agent.verify_unlearned(receipt.id, [Sample(answer="Something else.")])
        agent.undo(receipt.id)
        assert "Rome" in agent.ask(asked, session="undone").text


def test_a_store_made_anew_still_has_what_was_learnt_from_texts_that_are_gone(
    open_: Open, tmp_path: Path
) -> None:
    agent = open_()
    agent.unlearn("capitals", pairs=CAPITALS, certify=False)
    agent.unlearn("recipes", pairs=RECIPES, certify=False)
    digest, standing = agent.unlearners[0].digest(), agent.unlearned()
    agent.close()
    home = tmp_path / "home"
    found = Agent.doctor(
        home=home, embedder=HashingEmbedder(), memories=[QUICK], fix=True, rebuild=True
    )
    assert found.healthy
    agent = open_()
    assert agent.unlearned() == standing and agent.unlearners[0].digest() == digest


def test_a_request_that_fails_in_whatever_way_leaves_no_texts(open_: Open, tmp_path: Path) -> None:
    agent = open_("o3:passes=3,until=0")

    def fail(done: int, expected: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        agent.unlearn("capitals", pairs=CAPITALS, progress=fail)
    assert agent.unlearned() == []
    assert not files_with(tmp_path / "home", "Vienna")


def test_a_model_elsewhere_refuses_by_its_prompt_and_is_not_attacked(
    open_: Open, tmp_path: Path
) -> None:
    agent = open_("refusal", model=ScriptedLLM(lambda _: "Hm."))
    receipt = agent.unlearn("capitals", pairs=CAPITALS)
    assert receipt.certificate is None and receipt.dropped is not None
    assert not files_with(tmp_path / "home", "Vienna")


def test_deep_forgetting_of_several_users_is_refused_before_anything_goes(open_: Open) -> None:
    agent = open_()
    agent.remember("Henrietta bakes bread.")
    agent.remember("Henrietta bakes rolls.", user="maria")
    with pytest.raises(InputError, match="records of several users"):
        agent.forget_deeply(query="Henrietta", all_users=True)
    assert len(agent.forget(query="Henrietta", all_users=True, dry_run=True).records) == 2


def test_undoing_erases_the_texts_also_where_no_unlearner_is_open(
    open_: Open, tmp_path: Path
) -> None:
    receipt = open_().unlearn("capitals", pairs=CAPITALS, certify=False, keep_texts=True)
    agent = open_("scm")
    agent.undo(receipt.id)
    agent.close()
    open_().close()
    assert not files_with(tmp_path / "home", "Vienna")
