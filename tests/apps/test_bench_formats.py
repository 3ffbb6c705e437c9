"""The bench of storage formats, on a tiny model and short texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from palimpsest.apps.bench import format_texts, formats
from palimpsest.apps.bench.format_caches import FORMATS, FP8, QUANTO, QUICK, in_format, our_prompt
from palimpsest.apps.bench.setting import Setting
from palimpsest.errors import InputError
from palimpsest.llm.local import LocalLLM


@pytest.fixture
def setting(
    tmp_path: Path, tiny_llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setting]:
    """A run on a model of 16 channels, that knows one byte a token."""
    for name, value in (("PACKED", 256), ("NEXT", 32), ("TEXTS", 1)):
        monkeypatch.setattr(formats, name, value)
    made = Setting(seed=0, full=False, data=None, scratch=tmp_path)
    made.__dict__["llm"] = tiny_llm
    with closing(made):
        yield made


def test_every_format_is_measured_beside_transformers_own(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "is_optimum_quanto_available", lambda: False)
    monkeypatch.setattr(formats, "FACTS_WITHIN", 1536)
    packed, asked, held = formats.formats(setting)
    rows = {str(row["system"]): row for row in packed.rows}
    missing = [f"{name}: not installed" for name in QUANTO]
    assert list(rows) == [*QUICK, FP8, *missing]
    assert rows["int4"]["bits"] == (4 + 32 / 64 + 4 + 32 / 16) / 2
    assert rows["plain"]["bytes/token"] == 2 * 2 * 2 * 16 * 2  # K and V, layers, heads, channels
    assert rows["plain"]["delta NLL"] == 0 == rows["plain"]["error K"]
    by_error = sorted(("int2", "int4", "int8"), key=lambda name: float(str(rows[name]["error V"])))
    assert by_error == ["int8", "int4", "int2"]
    assert rows["ThinK, 40 %"]["error V"] == 0 != rows["ThinK, 40 %"]["error K"]
    assert [row["system"] for row in asked.rows] == list(formats.ASKED)
    assert len(held.rows) == 12


def test_formats_read_a_text_as_it_comes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "STREAMED", 1)
    rows = formats.while_reading(setting).rows
    assert [row["system"] for row in rows] == list(formats.READ_ON)
    assert all(abs(float(str(row["delta NLL"]))) < 0.5 for row in rows)


def test_a_prompt_is_packed_but_for_its_end(setting: Setting, tiny_llm: LocalLLM) -> None:
    ids = tiny_llm.tokenizer("A sentence of many bytes. " * 20, return_tensors="pt").input_ids
    prompt = our_prompt(tiny_llm.model, ids[:, : 256 + 64])
    for name, spec in FORMATS.items():
        held = in_format(tiny_llm.model, prompt, spec)
        assert held.fork().get_seq_length() == 320, name
        assert held.bits < 16 or name == "plain"


class TestTexts:
    def test_a_text_tells_what_it_is_asked_for_and_neither_question_twice(self) -> None:
        told = format_texts.facts(Random(1), lambda text: len(text) > 3000)
        assert len(told.text) > 3000
        lines = told.text.split("\n")
        for cloze in (*told.first, *told.second):
            assert f"{cloze.start}{cloze.ends[0]}.".strip() in lines
            assert len(set(cloze.ends)) == format_texts.PEOPLE_TOLD
            for wrong in cloze.ends[1:]:
                assert f"{cloze.start}{wrong}.".strip() not in lines
                assert wrong in told.text
        starts = [cloze.start for cloze in (*told.first, *told.second)]
        assert len(set(starts)) == 2 * format_texts.PEOPLE_TOLD
        assert not any(start.strip() in line for start in starts for line in lines[-8:])

    def test_the_same_seed_tells_the_same(self) -> None:
        one, other = (format_texts.facts(Random(2), lambda text: True) for _ in range(2))
        assert one == other

    def test_without_data_documents_are_made_up(self, setting: Setting) -> None:
        sources = [source for source, _ in format_texts.documents(setting, 2)]
        assert sources == ["a made-up chronicle"] * 2

    def test_a_data_folder_without_the_sets_is_named(self, tmp_path: Path) -> None:
        given = Setting(seed=0, full=False, data=tmp_path, scratch=tmp_path)
        with pytest.raises(InputError, match="dailydialog"):
            next(format_texts.documents(given, 1))
