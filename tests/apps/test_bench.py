"""The benches: the harness, and each part on a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from langchain_core.messages import BaseMessage
from matplotlib.figure import Figure
from palimpsest.apps.bench import answering, harness, reading, recall, scm, speed
from palimpsest.apps.bench.dialogue import (
    Dialogue,
    Probe,
    needle_dialogue,
)
from palimpsest.apps.bench.harness import Row, Table, run_bench, show_table
from palimpsest.apps.bench.material import FACTS
from palimpsest.apps.bench.metrics import Spread
from palimpsest.apps.bench.plot import bars
from palimpsest.apps.bench.rankers import bm25, chance, score
from palimpsest.apps.bench.registry import BENCHES
from palimpsest.apps.bench.setting import Setting
from palimpsest.apps.bench.told import ask, ranking, told
from palimpsest.apps.cli import app
from palimpsest.errors import InputError, UnknownName
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.hashing import HashingEmbedder
from rich.console import Console
from typer.testing import CliRunner

SMALL = needle_dialogue(Random(3), facts=4, fillers=12)


def oracle(messages: Sequence[BaseMessage]) -> str:
    """Says every keyword that it was shown, so that an answer is right if its prompt holds it."""
    shown = " ".join(str(message.content) for message in messages)
    return " ".join(fact.keyword for fact in FACTS if fact.keyword in shown.lower()) or "Nothing."


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """A run whose models are a script and a hash."""
    made = Setting(seed=0, full=False, data=None, scratch=tmp_path)
    made.__dict__["llm"] = ScriptedLLM(oracle, score=lambda messages, text: 0.0)
    made.__dict__["embedder"] = HashingEmbedder()
    made.__dict__["encode"] = HashingEmbedder().embed
    with closing(made):
        yield made


class TestRankers:
    def test_bm25_finds_words_and_survives_quotes_and_operators(self, setting: Setting) -> None:
        rank = bm25({"a": "the red fox", "b": "a blue whale"}, setting.resources)
        assert rank('whales" OR NEAR(', 5) == ["b"]
        assert rank("?!", 5) == []

    def test_chance_is_k_over_n(self) -> None:
        texts = {str(n): "" for n in range(20)}
        probes = [Probe("?", frozenset({str(n % 20)})) for n in range(2000)]
        assert score(chance(texts, Random(0)), probes, (5,))["recall@5"] == pytest.approx(
            0.25, abs=0.05
        )

    def test_an_agent_finds_the_turn_that_has_the_words(self, setting: Setting) -> None:
        turns = {"t1": ("The heron stands in the reeds.", "Yes."), "t2": ("It rains.", "It does.")}
        home = told(setting, Dialogue(turns, ()))
        with setting.agent("scm:gate=always", home=home) as agent:
            assert ranking(agent)("Where does the heron stand?", 1) == ["t1"]

    def test_our_index_and_its_parts_are_all_measured(self, setting: Setting) -> None:
        [table] = recall.needles(setting, SMALL)
        assert [row["system"] for row in table.rows] == [
            "hybrid index (ours)",
            "BM25 (FTS5 directly)",
            "MiniLM + matrix product",
            "MiniLM + Chroma directly",
            "chance",
        ]
        assert all(0 <= scm.number(table, str(r["system"]), "recall@10") <= 1 for r in table.rows)


class TestTheStreamsBench:
    def test_a_question_that_was_asked_leaves_no_trace(self, setting: Setting) -> None:
        with setting.agent("scm:gate=always", home=told(setting, SMALL)) as agent:
            before = (agent.memories[0].digest(), agent.turns(50, session="dialogue"))
            ask(agent, SMALL.probes[0].question)
            assert (agent.memories[0].digest(), agent.turns(50, session="dialogue")) == before

    def test_who_is_shown_the_answer_gives_it_and_nobody_else(self, setting: Setting) -> None:
        table = answering.answers(setting, SMALL)
        assert scm.number(table, answering.NOTHING.name, "containment") == 0
        assert scm.number(table, answering.CEILING.name, "containment") == 1
        for row in table.rows:
            assert scm.number(table, str(row["system"]), "prompt tokens max") <= row["limit"]  # type: ignore[operator]

    def test_the_conversation_before_the_question_reaches_the_model(self, setting: Setting) -> None:
        with setting.agent("recent:turns=4", home=told(setting, SMALL)) as agent:
            ask(agent, "And now?")
            [asked] = agent.llm.asked  # type: ignore[attr-defined]
            shown = [str(message.content) for message in asked.messages]
        last_four = [text for turn in list(SMALL.turns.values())[-4:] for text in turn]
        assert shown[1:-1] == last_four

    def test_the_gate_table_has_both_gates_and_a_rule_of_thumb(self, setting: Setting) -> None:
        rows = answering.gate(setting, SMALL).rows
        assert [row["system"] for row in rows] == [
            "gate=relevance",
            "gate=llm",
            "a first-person word",
        ]
        assert all(0 <= float(str(row["AUC"])) <= 1 for row in rows)

    def test_a_document_is_read_beside_its_baselines(self, setting: Setting) -> None:
        table = reading.documents(setting)
        assert [row["system"] for row in table.rows] == [
            "summary tree (SCM)",
            "without context (RecursiveSum)",
            "full context: one prompt",
            "the first 120 tokens",
        ]
        tree = table.rows[0]
        assert tree["prompt + reply max"] <= reading.LIMITS["context"]  # type: ignore[operator]
        assert tree["depth"] <= tree["depth bound"]  # type: ignore[operator]

    def test_a_long_conversation_is_cut_to_its_window(self, setting: Setting) -> None:
        first, last = reading.long_conversation(setting, turns=8).rows
        assert last["prompt tokens max"] <= last["limit"]  # type: ignore[operator]
        assert first["system"] == "first 4 turns"

    def test_speed_has_the_bare_thing_below_each_of_ours(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(speed, "_starts", lambda setting: [])
        rows = speed.speed(setting, SMALL).rows
        assert [row["system"] for row in rows] == [
            "first token, through the agent",
            "of which the model's own",
            "the same prompt to the model, afterwards",
            "write a turn: ledger and store",
            "MiniLM and Chroma directly",
        ]

    def test_a_target_holds_on_its_bound_and_not_beyond(self) -> None:
        assert scm.at_most("x", 0.1, 0.1)["held"] and not scm.at_most("x", 0.11, 0.1)["held"]
        assert scm.at_least("x", 0.6, 0.6)["held"] and not scm.at_least("x", 0.59, 0.6)["held"]


def toy(setting: Setting) -> Iterator[Table]:
    """A bench that measures nothing much."""
    yield Table(
        title="toy",
        rows=[
            {"system": "ours", "recall@1": 0.5, "ms": Spread.of([1, 2, 4]), "held": True},
            {"system": "chance", "recall@1": setting.rng("x").random(), "held": False},
        ],
        plot=("recall@1", "ms"),
        published=[{"system": "theirs", "model": "big-model", "recall": 93.5}],
        source="a paper",
    )


def test_a_plot_says_what_its_axes_are() -> None:
    rows: list[Row] = [{"method": "ours", "seconds": 1.5}, {"method": "theirs", "seconds": 2.0}]
    axes = Figure().subplots()
    bars(axes, Table(title="time", rows=rows, plot=("seconds",)))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds", "method")


class TestHarness:
    @pytest.fixture(autouse=True)
    def a_toy_bench(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(BENCHES._rows, "toy", f"{__name__}:toy")
        monkeypatch.setattr(BENCHES, "load", lambda name: toy)

    def test_a_report_keeps_versions_seed_and_configuration_beside_the_numbers(
        self, tmp_path: Path
    ) -> None:
        report = run_bench("toy", seed=7)
        path = report.save(tmp_path / "new")
        kept = json.loads(path.read_text())
        assert kept["setting"] | {"seed": 7, "full": False} == kept["setting"]
        assert {"python", "palimpsest", "torch", "transformers", "chromadb", "commit"} <= (
            kept["environment"].keys()
        )
        assert kept["tables"][0]["rows"][0]["ms"] == {
            "median": 2,
            "low": 1.5,
            "high": 3,
            "n": 3,
        }
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    def test_the_same_seed_draws_the_same_numbers(self) -> None:
        def drawn(seed: int) -> object:
            return run_bench("toy", seed=seed).tables[0].rows[1]["recall@1"]

        assert drawn(1) == drawn(1) != drawn(2)

    def test_published_numbers_stand_in_a_table_of_their_own(self) -> None:
        console = Console(record=True, width=120)
        [table] = toy(Setting(0, False, None, Path()))
        show_table(table, console)
        ours, theirs = console.export_text().split("published elsewhere")
        assert "93.5" not in ours and "big-model" in theirs and "a paper" in theirs
        assert "2 (1.5–3)" in ours and "yes" in ours and "NO" in ours

    def test_a_data_folder_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is not a folder"):
            run_bench("toy", data=tmp_path / "none")

    def test_the_command_prints_one_document_and_keeps_it(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["bench", "toy", "--json", "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
        document: Mapping[str, object] = json.loads(result.stdout)
        assert document["bench"] == "toy"
        assert json.loads(Path(str(document["file"])).read_text())["tables"] == document["tables"]


def test_an_unknown_bench_lists_those_there_are() -> None:
    with pytest.raises(UnknownName, match="recall, scm"):
        run_bench("speed-of-light")


def test_every_row_of_the_registry_leads_to_a_bench() -> None:
    names = (
        "edit",
        "fit",
        "forget",
        "formats",
        "kernels",
        "needles",
        "ood",
        "poison",
        "recall",
        "scm",
        "sirllm",
        "sort",
        "store",
        "stream",
    )
    assert {name: callable(BENCHES.load(name)) for name in BENCHES} == dict.fromkeys(names, True)


def test_outside_a_checkout_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "apps" / "bench" / "harness.py"))
    assert harness.commit() is None
