"""Needles: the texts are what they say, and the bench tells a memory that reads on from none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import torch
from palimpsest.apps.bench import haystack, lookups, needles
from palimpsest.apps.bench.haystack import Haystack
from palimpsest.apps.bench.setting import Setting
from palimpsest.errors import InputError
from palimpsest.kernels.base import Attended
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.retention.base import FarShape, Leaving
from palimpsest.memory.retention.policies.registry import open_policy
from torch import Tensor


def encode(text: str) -> list[int]:
    """A byte is a token."""
    return list(text.encode())


def text(ids: list[int]) -> str:
    return bytes(ids).decode()


@pytest.fixture
def keys() -> Haystack:
    return haystack.pass_keys(encode, None, [4000, 8000], 5, Random(0))


def test_each_pass_key_is_told_where_it_says_and_asked_for_by_name(keys: Haystack) -> None:
    assert len(keys.needles) == 10 and len(keys.ids) >= 8000
    told = [text(keys.ids[needle.start : needle.end]) for needle in keys.needles]
    assert len({needle.start for needle in keys.needles}) == 10
    assert sum(needle.end <= 4000 for needle in keys.needles) == 5
    for needle, sentence in zip(keys.needles, told, strict=True):
        found = re.search(r"The pass key of (\w+ \w+) is (\d{5})\.", sentence)
        assert found is not None
        person, key = found.groups()
        assert text(needle.question).count(person) == 2
        assert text(needle.answer) == f" {key}"
        assert sum(person in other for other in told) == 1


def test_strange_answers_stand_nowhere_and_rivals_answer_other_questions(keys: Haystack) -> None:
    whole, early = text(keys.ids), text(keys.ids[:4000])
    for needle in keys.needles:
        assert not any(text(ids) in whole for ids in needle.strange)
        assert all(text(ids) in whole and ids != needle.answer for ids in needle.rivals)
    assert all(text(ids) in early for ids in keys.needles[0].rivals)


def test_pairs_are_asked_for_by_their_key() -> None:
    made = haystack.pairs(encode, None, [4000], 5, Random(0))
    for needle in made.needles:
        key, value = re.findall(r'"([0-9a-f-]{36})"', text(made.ids[needle.start : needle.end]))
        assert key in text(needle.question) and value.startswith(text(needle.answer))
        assert len(needle.answer) == haystack.FEW
        assert not any(text(ids) in text(made.ids) for ids in needle.strange)


def test_a_model_that_is_served_is_refused(tmp_path: Path) -> None:
    made = Setting(seed=0, full=False, data=None, scratch=tmp_path)
    made.__dict__["llm"] = ScriptedLLM(lambda messages: ".")
    with pytest.raises(InputError, match="this needs one in this process"):
        next(needles.needles(made))


def leaving(n: int, seed: int) -> Leaving:
    some = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, 2, n, 16, generator=some) for _ in range(2))
    return Leaving(keys, values, torch.ones(1, n).bool(), torch.zeros(1, 4, n))


def test_of_a_needles_blocks_those_count_that_the_question_reads() -> None:
    shape = FarShape(1, 2, 4, 16, torch.float32, torch.device("cpu"))
    policy = open_policy("infllm", block=16, stride=32, k=2, representatives=1)
    far = policy.far(shape)
    assert far is not None
    listener = lookups.Listener(far)
    given = leaving(96, 0)
    given.keys[:, :, 20] = 100.0
    given.keys[:, :, 40] = 90.0
    given.wanted[:, :, [20, 40]] = 1.0
    listener.add(given)
    q: Tensor = torch.ones(1, 4, 3, 16)
    assert isinstance(listener.read(q, 0.25), Attended)
    assert lookups.found_blocks(listener, [1, 2]) == (1.0, 2 / 6)
    assert lookups.found_blocks(listener, [1, 3])[0] == 0.5


def test_an_exact_index_recalls_all_and_any_keys_recall_what_chance_gives() -> None:
    shape = FarShape(1, 2, 4, 16, torch.float32, torch.device("cpu"))
    far = open_policy("retrieval", k=100).far(shape)
    assert far is not None
    listener = lookups.Listener(far)
    listener.add(leaving(2000, 1))
    listener.read(torch.randn(1, 4, 64, 16), 0.25)
    fork = listener.fork()
    for seed in range(4):
        step = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(seed))
        fork.read(step, 0.25)
    rows = {row["index"]: row for row in lookups.index_rows([listener], [fork])}
    exact, by_chance = rows["flat (exact)"], rows["any keys"]
    assert exact["recall@100"] == 1.0 and exact["keys compared"] == 1.0
    recall, mass = by_chance["recall@100"], exact["mass"]
    assert isinstance(recall, float) and recall == pytest.approx(0.1, abs=0.05)
    assert isinstance(mass, float) and 100 / 2000 < mass < 1.0


@pytest.fixture
def setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llm: LocalLLM
) -> Iterator[Setting]:
    monkeypatch.setattr(needles, "QUICK_LENGTHS", (3000, 3600))
    monkeypatch.setattr(needles, "EACH", 4)
    with closing(Setting(seed=0, full=False, data=None, scratch=tmp_path)) as made:
        made.__dict__["llm"] = tiny_llm
        yield made


def test_every_system_answers_at_every_length(setting: Setting) -> None:
    keys, pairs, layers, indexes, held = needles.needles(setting)
    systems = list(needles.SYSTEMS)
    systems_of_pairs = [name for name in systems if name != needles.BY_BLOCKS[1]]
    for table, asked in ((keys, systems), (pairs, systems_of_pairs)):
        assert [row["system"] for row in table.rows] == asked
        for row in table.rows:
            shares = [value for name, value in row.items() if name != "system"]
            assert len(shares) == 6 and all(0 <= float(str(share)) <= 1 for share in shares)
    assert [row["layer"] for row in layers.rows] == ["0", "1", "mean"]
    assert {str(row["index"]) for row in indexes.rows} >= {"flat (exact)", "any keys"}
    assert held.rows[-1]["check"] == "blocks of needles found, times chance"
