"""The edit bench: scores are the field's, points are kept, undoing is exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from palimpsest.apps.bench import edit_gates, edit_material, edit_undo
from palimpsest.apps.bench.edit import PARTS, edit, everything
from palimpsest.apps.bench.edit_gates import Shown, gates, protocols
from palimpsest.apps.bench.edit_lab import Laboratory, Plan
from palimpsest.apps.bench.edit_material import Fact, facts, texts, windows
from palimpsest.apps.bench.edit_measures import Judge, same, says
from palimpsest.apps.bench.edit_speed import speed
from palimpsest.apps.bench.edit_systems import NOTHING, REMEMBERED, Applied, Remembering
from palimpsest.apps.bench.edit_texts import temporal
from palimpsest.apps.bench.metrics import Estimate
from palimpsest.apps.bench.points import Points
from palimpsest.apps.bench.setting import Setting
from palimpsest.editors.base import Opened
from palimpsest.editors.registry import METHODS
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import CapabilityError, InputError
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.hashing import HashingEmbedder

QUICKLY = "wise:steps=2,contexts=0"
PLAN = Plan(sets=("sample",), systems=(), sizes=(1, 3), sample=2, most=3, full=False)


@pytest.fixture
def setting(tmp_path: Path, tiny_llm: LocalLLM) -> Iterator[Setting]:
    """A run on random weights, whose results are kept."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = Setting(seed=0, full=False, data=None, scratch=scratch, out=tmp_path / "out")
    made.__dict__.update(llm=tiny_llm, embedder=HashingEmbedder())
    with closing(made):
        yield made


def test_scores_without_edits_are_those_of_plain_teacher_forcing(
    smollm2: LocalLLM, tmp_path: Path
) -> None:
    some = facts("sample", None, 3)
    scores = Judge(Workbench(smollm2.model, smollm2.tokenizer, tmp_path)).score(some, Applied())
    assert scores.rel == pytest.approx(
        [_forced(smollm2, fact.edit.prompt, fact.edit.target) for fact in some]
    )
    assert scores.gen == pytest.approx(
        [_forced(smollm2, fact.paraphrase, fact.edit.target) for fact in some]
    )
    assert scores.loc == [1.0] * 3
    assert scores.routed == scores.opened == []


@torch.no_grad()
def _forced(llm: LocalLLM, prompt: str, target: str) -> float:
    """Prompt and target as one text, and how many tokens behind the prompt are foretold."""
    begin = len(llm.tokenizer(prompt)["input_ids"])
    ids = llm.tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
    likely = llm.model(ids).logits[0, begin - 1 : -1].argmax(-1)
    return float((likely == ids[0, begin:]).float().mean())


def test_locality_is_the_share_of_tokens_that_stay() -> None:
    assert same((1, 2, 3, 4), (1, 2, 9, 4)) == 0.75


def test_what_is_said_is_compared_in_any_case_and_to_the_end() -> None:
    assert says(" new  york", "New York")
    assert not says("New", "New York")


def test_windows_are_disjoint_and_as_many_as_the_sample_fills() -> None:
    every = facts("sample", None)
    some = windows("sample", every, 3, sample=10)
    assert [len(window.facts) for window in some] == [3, 3, 3]
    assert [fact for window in some for fact in window.facts] == every[:9]
    [whole] = windows("sample", every, len(every), sample=1)
    assert list(whole.facts) == every


def test_no_prompt_of_the_test_is_given_to_the_editor() -> None:
    for fact in facts("sample", None):
        told = {fact.edit.prompt, *fact.edit.paraphrases, *(p for p, _ in fact.edit.locality)}
        assert told.isdisjoint({fact.paraphrase, fact.elsewhere[0], *fact.near})
        assert fact.near


@pytest.mark.parametrize("name", ["zsre", "counterfact", "nothing"])
def test_a_set_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=name):
        facts(name, tmp_path)
    with pytest.raises(InputError, match="--data"):
        facts(name, None)
    with pytest.raises(InputError, match="temporal_edit"):
        texts("temporal", tmp_path, 1)


def test_a_run_goes_on_from_what_an_earlier_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    measured: list[str] = []

    def measure(name: str) -> dict[str, object]:
        measured.append(name)
        return {"rel": [0.5], "nbytes": 3.0}

    first = Points(path).get({"system": "a"}, lambda: measure("a"))
    with path.open("a") as file:
        file.write('{"key": "broken off')
    again = Points(path)
    assert again.get({"system": "a"}, lambda: measure("again")) == first
    again.get({"system": "b"}, lambda: measure("b"))
    assert measured == ["a", "b"] and again.resumed == 1


def test_every_system_has_its_rows_and_a_second_run_measures_nothing(setting: Setting) -> None:
    options = {"parts": ("sequences",), "systems": (NOTHING, QUICKLY), "sizes": (1, 3), "most": 3}
    single, three, curve = edit(setting, **options)  # type: ignore[arg-type]
    assert [row["system"] for row in three.rows] == [NOTHING, QUICKLY]
    loc = three.rows[0]["Loc"]
    assert isinstance(loc, Estimate) and (loc.mean, loc.n) == (1.0, 3)
    assert "routed" in single.rows[1] and "routed" not in single.rows[0]
    assert curve.curve == ("edits", "Rel", "Gen", "Loc") and len(curve.points) == 4
    assert "earlier run" not in three.note
    _, again, _ = edit(setting, **options)  # type: ignore[arg-type]
    assert again.rows == three.rows and "4 points are of an earlier run" in again.note


def test_a_system_that_fails_is_named_and_the_others_are_measured(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = json.loads(edit_material.SAMPLE.read_text().splitlines()[0])
    sample = tmp_path / "long.jsonl"
    sample.write_text(json.dumps(long | {"target_new": "Rome " * 60}) + "\n")
    monkeypatch.setattr(edit_material, "SAMPLE", sample)
    options = {"parts": ("sequences",), "systems": (QUICKLY, NOTHING), "sizes": (1,)}
    table, _ = edit(setting, **options)  # type: ignore[arg-type]
    assert [row["system"] for row in table.rows] == [NOTHING]
    assert f"went no further: {QUICKLY}: prompt=" in table.note


def test_a_model_that_is_served_elsewhere_is_refused(setting: Setting) -> None:
    setting.__dict__["llm"] = ScriptedLLM(lambda messages: ".")
    with pytest.raises(CapabilityError, match="has no weights here"):
        next(edit(setting))


def test_notes_stand_before_the_question_that_they_answer(setting: Setting, tmp_path: Path) -> None:
    every = facts("sample", None, 6)
    [window] = windows("sample", every, 6, 1)
    memory = Remembering(setting.llm, HashingEmbedder, tmp_path / "notes")
    with memory.opened() as take:
        asked = take(window).ask(every[0].edit.prompt)
    *notes, question = asked.split("\n")
    assert every[0].edit.text in notes and question == every[0].edit.prompt
    assert not (tmp_path / "notes").exists()


def test_the_official_route_sees_the_answer() -> None:
    class Noting:
        layers: frozenset[str] = frozenset()
        seen: list[str] = []  # noqa: RUF012

        def open(self, prompts: list[str]) -> Opened:
            self.seen += prompts
            return Opened(deltas={})

    noting = Noting()
    Shown(noting, {"The sea is": "blue"}).open(["The sea is"])  # type: ignore[arg-type]
    assert noting.seen == ["The sea is blue"]


def test_undoing_leaves_what_learning_only_the_rest_makes(setting: Setting) -> None:
    lab = Laboratory(setting)
    shard = f"{edit_undo.SHARD},steps=2,contexts=0"
    for spec in (edit_undo.CHEAP, shard):
        row = edit_undo._undone(lab, "some", spec, 3)
        assert row["equal"] is True
        assert row["learnt again"] == (0 if spec == edit_undo.CHEAP else 2)


def test_costs_are_measured_beside_the_whole_model_and_beside_nothing(setting: Setting) -> None:
    learning, decoding = speed(Laboratory(setting), PLAN)
    ours, whole, official = learning.rows
    assert whole["steps"] == ours["steps"] and official["steps"] == 70
    assert [("ratio to nothing" in row) for row in decoding.rows] == [False, True, False, True]


def test_both_protocols_are_asked_bare_and_with_the_answer(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit_gates, "SHARED", f"{edit_gates.SHARED},steps=2,contexts=0")
    [table] = protocols(Laboratory(setting), replace(PLAN, most=2))
    assert len(table.rows) == 2
    ours = table.rows[1]
    assert ours["own, bare"] == 1.0, "the threshold is below the least of the edits' own prompts"
    assert {"own, with answer", "Rel, bare", "Rel, with answer"} <= ours.keys()


def test_texts_are_scored_by_perplexity_with_and_without_the_cut(
    setting: Setting, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "temporal_edit").mkdir(parents=True)
    record = {
        "prompt": "The Alma",
        "target_new": "is a ferry that was built in Oslo.",
        "subject": "The Alma",
        "ood_rephrase": "The Alma, a small ship, goes to sea.",
        "locality_prompt": "Rain is",
        "locality_ground_truth": "water",
    }
    (data / "temporal_edit" / "temporal_edit.jsonl").write_text(json.dumps(record) + "\n")
    run = replace(setting, data=data)
    run.__dict__.update(llm=setting.llm, embedder=setting.embedder)
    plan = replace(PLAN, systems=(NOTHING, QUICKLY), sizes=(1,))
    [table] = temporal(Laboratory(run), plan)
    plain, edited = table.rows
    assert plain["Loc"] == 1.0 and edited["routed"] == 1.0
    assert float(plain["PPL"]) > float(plain["PPL cut at 100"]) == 100.0  # type: ignore[arg-type]
    assert float(edited["PPL"]) < float(plain["PPL"])  # type: ignore[arg-type]
    assert 0 <= float(plain["sure of another text"]) <= 1  # type: ignore[arg-type]


def test_gates_are_shown_every_kind_of_prompt(setting: Setting) -> None:
    often, sorting, *histograms = gates(Laboratory(setting), replace(PLAN, most=3))
    assert {row["prompts"] for row in often.rows} == {
        "own",
        "paraphrase",
        "elsewhere",
        "same subject",
    }
    own = [row["opened"] for row in often.rows if row["prompts"] == "own"]
    assert own == [1.0, 1.0]
    assert len(sorting.rows) == 4
    for table in histograms:
        shares = [float(row["own"]) for row in table.rows]  # type: ignore[arg-type]
        assert sum(shares) == pytest.approx(1)


def test_all_methods_and_the_prompt_are_among_the_rows() -> None:
    assert {NOTHING, REMEMBERED, *METHODS} < set(everything())
    assert set(PARTS) >= {"sequences", "gates", "protocols", "undo", "speed"}


def test_facts_compare_by_what_they_hold() -> None:
    assert facts("sample", None, 2) == facts("sample", None, 2)
    assert isinstance(facts("sample", None, 1)[0], Fact)
