"""What the benches measure with and on: metrics, our own material, LoCoMo's loader."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.apps.bench.corpora import locomo
from palimpsest.apps.bench.dialogue import (
    chronicle,
    coverage,
    key_names,
    needle_dialogue,
)
from palimpsest.apps.bench.material import FACTS, NEEDS_MEMORY, NEEDS_NOTHING, TOPICS
from palimpsest.apps.bench.metrics import Spread, auc, contains, ndcg_at, percentile, recall_at
from palimpsest.errors import InputError

SAMPLE = Path(__file__).parents[1] / "data" / "time_machine_chapter_1.txt"


class TestMetrics:
    def test_recall_counts_the_relevant_among_the_first_k(self) -> None:
        assert recall_at(2, ["a", "b", "c"], {"b", "c"}) == 0.5

    def test_ndcg_discounts_by_the_logarithm_of_the_rank(self) -> None:
        assert ndcg_at(10, ["a"], {"a"}) == 1
        assert ndcg_at(10, ["x", "a"], {"a"}) == pytest.approx(1 / 1.5849625)
        assert ndcg_at(10, ["x"], {"a"}) == 0

    def test_auc_is_the_chance_that_a_positive_is_above_a_negative(self) -> None:
        assert auc([3, 2], [1, 0]) == 1
        assert auc([0, 1], [2, 3]) == 0
        assert auc([1, 1], [1]) == 0.5

    @given(st.lists(st.floats(-1e6, 1e6), min_size=1))
    def test_a_spread_lies_around_its_median_and_within_the_values(
        self, values: list[float]
    ) -> None:
        spread = Spread.of(values)
        slack = 1e-6
        assert spread.low <= spread.median + slack and spread.median <= spread.high + slack
        assert min(values) - slack <= spread.low and spread.high <= max(values) + slack
        assert percentile(values, 50) == pytest.approx(spread.median)

    def test_a_spread_of_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            Spread.of([])

    def test_containment_ignores_case(self) -> None:
        assert contains("She is called BISCUIT.", "biscuit")
        assert not contains("I do not know.", "biscuit")


class TestMaterial:
    def test_a_keyword_is_in_one_turn_only_and_in_no_question(self) -> None:
        dialogue = needle_dialogue(Random(0))
        for probe in dialogue.probes:
            holders = {k for k, text in dialogue.texts().items() if contains(text, probe.keyword)}
            assert holders == probe.evidence
            assert not any(contains(p.question, probe.keyword) for p in dialogue.probes)

    def test_the_assistant_never_says_the_keyword(self) -> None:
        assert not any(contains(fact.reply, fact.keyword) for fact in FACTS)

    def test_the_needle_dialogue_is_as_large_and_as_old_as_it_says(self) -> None:
        dialogue = needle_dialogue(Random(0))
        assert len(dialogue.turns) == 140 and len(dialogue.probes) == 40
        assert Spread.of(dialogue.ages()).median > 40
        assert min(dialogue.ages()) > 5
        assert len(set(dialogue.texts().values())) == 140

    def test_the_same_seed_gives_the_same_dialogue_and_another_one_another(self) -> None:
        assert needle_dialogue(Random(1)) == needle_dialogue(Random(1))
        assert needle_dialogue(Random(1)) != needle_dialogue(Random(2))

    def test_there_are_forty_commands_and_forty_topics(self) -> None:
        assert len(set(NEEDS_MEMORY)) == len(set(NEEDS_NOTHING)) == 20
        assert len({topic for topic, *_ in TOPICS}) == 40

    def test_names_are_found_where_they_do_not_begin_a_sentence(self) -> None:
        assert key_names("Old Tom met Anna, and Anna ran. The dog saw Anna, and Tom.") == [
            "Anna",
            "Tom",
        ]
        assert "Filby" in key_names(SAMPLE.read_text(encoding="utf-8"))

    def test_coverage_is_the_share_of_names_that_are_kept(self) -> None:
        assert coverage(["Anna", "Tom"], "Anna left.") == 0.5
        assert coverage([], "Anna left.") == 0

    def test_a_chronicle_names_its_places_and_people(self) -> None:
        text = chronicle(Random(0), 6)
        assert text.count("\n\n") == 5 and len(key_names(text)) >= 8


class TestLocomo:
    def folder(self, tmp_path: Path) -> Path:
        sample = {
            "sample_id": "one",
            "conversation": {
                "speaker_a": "Ada",
                "session_1_date_time": "1:56 pm on 8 May, 2023",
                "session_1": [
                    {"speaker": "Ada", "dia_id": "D1:1", "text": "I sold the boat."},
                    {"speaker": "Bo", "dia_id": "D1:2", "text": "A pity."},
                ],
            },
            "qa": [
                {"question": "What was sold?", "evidence": ["D1:1"], "category": 4},
                {"question": "Who wept?", "evidence": ["D1:2"], "category": 5},
                {"question": "And where?", "evidence": ["D1:1; D9"], "category": 4},
                {"question": "And when?", "evidence": [], "category": 2},
            ],
        }
        (tmp_path / "locomo").mkdir()
        packed = gzip.compress(json.dumps(sample).encode())
        (tmp_path / "locomo" / "locomo.jsonl.gz").write_bytes(packed)
        return tmp_path

    def test_its_questions_are_those_with_an_answer_and_sound_evidence(
        self, tmp_path: Path
    ) -> None:
        [corpus] = locomo(self.folder(tmp_path))
        assert corpus.name == "one"
        lines = {each.id: each.line for each in corpus.said}
        assert lines == {"D1:1": "Ada: I sold the boat.", "D1:2": "Bo: A pity."}
        assert corpus.said[0].when == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
        assert corpus.said[0].when < corpus.said[1].when
        [question] = corpus.questions
        assert (question.text, question.evidence) == ("What was sold?", frozenset({"D1:1"}))

    def test_a_folder_without_it_is_an_error_that_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"locomo\.jsonl\.gz"):
            next(locomo(tmp_path))
