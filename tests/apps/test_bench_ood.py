"""The bench of scorers: its sample has what each kind needs, and its tables hold what they say."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from palimpsest.apps.bench import ood, ood_material
from palimpsest.apps.bench.setting import Setting
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import twin
from palimpsest.memory.gates.features import background
from palimpsest.memory.gates.scorers.contrastive import Tuning, masked


def test_nothing_that_is_asked_was_fitted_and_the_kinds_do_not_overlap() -> None:
    task = ood_material.sample()
    kinds = [task.inside, *task.same.values(), task.near, task.far, *task.lookalike.values()]
    texts = [text for kind in kinds for text in kind]
    assert len(texts) == len(set(texts))
    assert set(task.utility["other people"]) == set(task.near)
    assert all(
        prompt in told
        for told, prompt in zip(task.disguised["inside a story"], task.inside, strict=True)
    )


def test_without_data_there_are_tables_of_scorers_features_and_the_gate(
    tiny_llm: LocalLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ood, "SPECS", ("fused", "o3:sign=fixed,shrinkage=0.5"))
    with closing(Setting(seed=0, full=False, data=None, scratch=tmp_path)) as setting:
        setting.__dict__["llm"] = tiny_llm
        scorers, features, gates, holds = ood.ood(setting)
    names = [row["scorer"] for row in scorers.rows]
    assert names[:2] == ["sample: fused", "sample: o3:sign=fixed,shrinkage=0.5"]
    assert len(names) == 5 and "likelihood" in str(names[3])
    assert [row["features"] for row in features.rows][-1] == "sample: whitened, all of these"
    by = {row["prompts"]: row for row in gates.rows}
    assert by["sample: own"]["opens"] == 1.0
    assert by["sample: all utility"]["n"] == 44
    assert [row["held"] for row in holds.rows] == [
        row["measured"] >= float(str(row["target"])[3:])  # type: ignore[operator]
        for row in holds.rows
    ]


class TestTuning:
    def test_masked_are_a_few_tokens_and_never_the_first(self) -> None:
        from random import Random

        row = list(range(10, 210))
        ids, places = masked(row, 1, 250, Random(0))
        assert 15 <= len(places) <= 45 and 0 not in places
        assert all(ids[at] == row[at] for at in range(200) if at not in places)
        assert sum(ids[at] == 1 for at in places) > len(places) / 2

    @pytest.mark.parametrize("objective", ["entropy", "infonce"])
    def test_the_model_stays_as_it_is_and_its_twin_learns(
        self, tiny_llm: LocalLLM, objective: str
    ) -> None:
        ids = torch.tensor([[5, 6, 7]])
        before = tiny_llm.model(ids).logits
        tuning = Tuning(objective=objective, rate=0.01)
        texts = [text[:60] for text in background()[:16]]
        tuned = tuning.tune(tiny_llm.model, tiny_llm.tokenizer, texts)
        assert torch.equal(tiny_llm.model(ids).logits, before)
        assert not torch.equal(tuned.raw(texts[:1]), _raw(tiny_llm, texts[:1]))
        again = tuning.tune(tiny_llm.model, tiny_llm.tokenizer, texts)
        assert torch.equal(tuned.raw(texts[:2]), again.raw(texts[:2]))

    def test_the_positive_is_what_infonce_marks(self) -> None:
        marked = Tuning(objective="infonce")
        keys = torch.eye(4)[None]
        right, wrong = marked.contrast(keys, keys), marked.contrast(keys.flip(1), keys)
        assert float(right) < 0.01 < float(wrong)
        sure = Tuning()
        assert torch.allclose(
            sure.contrast(50 * keys, keys), sure.contrast(50 * keys.flip(1), keys)
        )


def _raw(llm: LocalLLM, texts: list[str]) -> torch.Tensor:
    from palimpsest.memory.gates.layers import LayerFeatures

    return LayerFeatures(twin(llm.model), llm.tokenizer).raw(texts)
