"""SirLLM's tasks: what is asked can be answered, and what is counted is what was kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import torch
from palimpsest.apps.bench import quizzes, surprise
from palimpsest.apps.bench import rock_paper_scissors as game
from palimpsest.apps.bench.cloze import Script, answered, prior
from palimpsest.apps.bench.quiz_material import GROCERIES, QUESTIONS
from palimpsest.apps.bench.quizzes import daily_dialogs, distractors, grocery
from palimpsest.apps.bench.setting import Setting
from palimpsest.errors import InputError
from palimpsest.llm.local import LocalLLM
from palimpsest.memory.retention import open_policy


@pytest.fixture
def setting(tmp_path: Path, tiny_llm: LocalLLM) -> Iterator[Setting]:
    made = Setting(seed=0, full=False, data=None, scratch=tmp_path)
    made.__dict__["llm"] = tiny_llm
    with closing(made):
        yield made


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


class TestMaterial:
    def test_things_to_buy_are_53_and_differ(self) -> None:
        assert len(set(GROCERIES)) == len(GROCERIES) == 53

    def test_every_question_has_five_options_that_differ_and_names_no_grocery(self) -> None:
        assert len({row[0] for row in QUESTIONS}) == len(QUESTIONS) == 60
        assert all(len(set(row)) == 6 for row in QUESTIONS)
        text = " ".join(" ".join(row) for row in QUESTIONS).lower()
        assert not [each for each in GROCERIES if each in text]

    def test_mmlu_gives_short_questions_with_the_answer_first(self, tmp_path: Path) -> None:
        row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
        long = {**row, "question": "Which? " * 40}
        lines = {**row, "question": "Which\nof them?"}
        write(tmp_path / "mmlu" / "mmlu_test_subset.jsonl.gz", [row, long, lines])
        assert distractors(tmp_path) == [("Which?", "c", "a", "b", "d")]


class TestGrocery:
    def test_the_thing_is_told_once_and_the_answer_is_the_thing(self) -> None:
        quiz = grocery(Random(4), QUESTIONS)
        place, item = quiz.facts["first"]
        assert place == 0 and item in quiz.turns[0][0] and len(quiz.turns) == 21
        assert quiz.options[quiz.answer] == f"{item}]" and len(set(quiz.options)) == 4
        assert not any(item in said + reply for said, reply in quiz.turns[1:])

    def test_the_late_thing_is_another_and_is_told_three_turns_before_the_question(self) -> None:
        quiz = grocery(Random(4), QUESTIONS, late=True)
        place, item = quiz.facts["late"]
        assert place == len(quiz.turns) - 3 and item in quiz.turns[place][0]
        assert f"{item}]" not in quiz.options

    def test_the_answer_is_at_every_place_and_the_seed_decides(self) -> None:
        rng = Random(0)
        assert {grocery(rng, QUESTIONS).answer for _ in range(40)} == {0, 1, 2, 3}
        assert grocery(Random(7), QUESTIONS) == grocery(Random(7), QUESTIONS)


class TestDailyDialog:
    def test_the_last_reply_is_asked_for_among_replies_from_elsewhere(self, tmp_path: Path) -> None:
        dialogs = [[f"turn {n} of {d}" for n in range(13)] for d in range(6)]
        rows: list[dict[str, object]] = [{"turns": each} for each in [*dialogs, ["short"] * 2]]
        write(tmp_path / "dailydialog" / "dailydialog.jsonl.gz", rows)
        for quiz in daily_dialogs(tmp_path, Random(0), 6):
            [mine] = [each for each in dialogs if each[0] == quiz.turns[0][0].splitlines()[0]]
            assert quiz.options[quiz.answer] == mine[11] and len(quiz.turns) == 5
            assert quiz.question == mine[10]
            assert [reply for _, reply in quiz.turns] == mine[1:11:2]
            wrong = [each for n, each in enumerate(quiz.options) if n != quiz.answer]
            assert len(wrong) == 3 and not set(wrong) & set(mine)
        with pytest.raises(InputError, match="has 6 conversations of 12 turns, and 7"):
            daily_dialogs(tmp_path, Random(0), 7)


class TestCloze:
    def test_a_script_is_the_chat_template_and_knows_where_the_fact_is(
        self, tiny_llm: LocalLLM
    ) -> None:
        quiz = grocery(Random(1), QUESTIONS, late=True)
        script = Script(tiny_llm, quiz)
        messages = [
            {"role": role, "content": text}
            for turn in quiz.turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": quiz.question})
        whole = tiny_llm.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = torch.cat([*script.turns, script.question], dim=1)[0]
        assert tiny_llm.tokenizer.decode(ids) == f"{whole}{quiz.cue}"
        assert script.length == len(ids)
        for name, (_, words) in quiz.facts.items():
            assert tiny_llm.tokenizer.decode(ids[script.facts[name]]) == words

    def test_what_is_shared_changes_no_answer_and_full_keeps_all(self, tiny_llm: LocalLLM) -> None:
        script = Script(tiny_llm, grocery(Random(1), QUESTIONS))
        specs = {"full": "full", "sinks": "sinks:budget=256", "sirllm": "sirllm:budget=256"}
        policies = {name: open_policy(spec) for name, spec in specs.items()}
        together = answered(tiny_llm, script, policies)
        for name, policy in policies.items():
            alone = answered(tiny_llm, script, {name: policy})[name]
            assert together[name].logprobs == pytest.approx(alone.logprobs, abs=1e-4)
            assert together[name].kept == alone.kept
        assert together["full"].kept == {"first": 1.0} and together["sinks"].kept == {"first": 0.0}
        assert prior(tiny_llm, script) != together["full"].logprobs

    def test_the_model_recalls_from_a_full_cache_and_not_from_a_window(
        self, smollm2: LocalLLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quizzes, "DISTRACTORS", 4)
        quiz = grocery(Random(3), QUESTIONS)
        script = Script(smollm2, quiz)
        specs = {"full": open_policy("full"), "sinks": open_policy("sinks:budget=96")}
        answers = answered(smollm2, script, specs)
        full, sinks = (answers[name].logprobs for name in ("full", "sinks"))
        assert max(full) == full[quiz.answer]
        assert full[quiz.answer] > sinks[quiz.answer] + 1


class TestGame:
    def test_counting_beats_the_favourite_and_nothing_beats_always_beating_it(self) -> None:
        thrown = game.moves(Random(0), "paper", 2_000)
        assert game._won(["scissors"] * 2_000, thrown) == pytest.approx(0.5, abs=0.03)
        assert game._won(game._counting(thrown), thrown) == pytest.approx(0.5, abs=0.03)
        assert game._won(thrown, thrown) == 0 and game._counting(["rock", "rock"])[1] == "paper"

    def test_the_table_has_who_need_not_remember_beside_the_policies(
        self, setting: Setting, tiny_llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(game, "QUICK_ROUNDS", 3)
        table = game.games(setting, tiny_llm)
        last = "always beats the usual move"
        names = [*game.POLICIES, "counts the moves so far", last]
        assert [row["policy"] for row in table.rows] == names


class TestTables:
    def test_standard_errors_are_of_the_mean(self) -> None:
        assert surprise.standard_error([0, 1, 0, 1]) == pytest.approx(0.2887, abs=1e-4)
        assert surprise.standard_error([1]) == 0

    def test_budgets_are_shares_of_the_conversation(self) -> None:
        specs = surprise.policies_of(1_099, {"a": "sinks", "b": "sirllm:recent=0"})
        assert specs["1/4", "a"] == "sinks:budget=272"
        assert specs["1/2", "b"] == "sirllm:recent=0,budget=544"

    def test_decay_is_told_from_none(self) -> None:
        names = ("first item, kept", "late item, kept")
        falling = [dict(zip(names, row, strict=True)) for row in ((0.9, 1.0), (0.5, 0.9))]
        rows = [*falling, *falling][: len(surprise.DECAYS)]
        faded, late, *_ = surprise._decay_checks(rows * len(surprise.SHARES))
        assert faded["held"] is False and late["held"] is True  # it rises again in between
        first = [{**row, names[0]: 0.9 - n / 10} for n, row in enumerate(rows)]
        assert next(surprise._decay_checks(first * 2))["held"] is True

    def test_the_bench_runs_to_its_end(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(surprise, "QUICK", 1)
        monkeypatch.setattr(quizzes, "DISTRACTORS", 6)
        monkeypatch.setattr(surprise, "DECAYS", (1.0, 0.5))
        monkeypatch.setattr(game, "QUICK_ROUNDS", 2)
        titles = {table.title: table for table in surprise.sirllm(setting)}
        assert len(titles) == 5
        asked = titles["Grocery: cloze accuracy by budget and policy"]
        names = [str(row["policy"]) for row in asked.rows]
        assert names[0] == "full cache, all" and names[-1] == "nothing was said, none"
        assert len(names) == 2 + len(surprise.SHARES) * len(surprise.POLICIES)
        assert asked.rows[0]["kept"] == 1
        gains = titles["Grocery: what surprisal gains"]
        assert len(gains.rows) == len(surprise.SHARES) * len(surprise.SIRLLM) * 3
