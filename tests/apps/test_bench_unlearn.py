"""The unlearn bench on random weights and invented people: every row is there, nothing twice."""

import gzip
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from palimpsest.apps.bench.setting import Setting
from palimpsest.apps.bench.unlearn import unlearn
from palimpsest.apps.bench.unlearn_lab import NEVER, TAUGHT
from palimpsest.apps.bench.unlearn_material import tofu
from palimpsest.llm.local import LocalLLM

SYSTEMS = ("o3:passes=1", "grad_diff:passes=1")


def row(author: int, at: int, splits: list[str]) -> dict[str, Any]:
    thing = ("house", "boat", "garden", "song")[at % 4] + str(at)
    return {
        "row": 20 * author + at,
        "author": author,
        "splits": splits,
        "question": f"What did author Zo{author} Ka{author} call the {thing}?",
        "answer": f"It is called {author}.",
        "paraphrased_question": f"Tell me how Zo{author} named the {thing}.",
        "paraphrased_answer": f"Its name is {author}.",
        "perturbed_answer": ["Its name is X.", "Its name is Y."],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a set of the form of TOFU: two authors to forget, four to keep."""
    folder = tmp_path / "data" / "tofu"
    folder.mkdir(parents=True)
    gone = [row(8 + at // 20, at % 20, ["forget01", "forget05", "forget10"]) for at in range(40)]
    kept = [row(at // 20, at % 20, ["retain90"]) for at in range(80)]
    with gzip.open(folder / "tofu_full.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, [*kept, *gone])))
    for name in ("real_authors", "world_facts"):
        asides = [
            {"question": f"Who is {name} {at}?", "answer": "A.", "perturbed_answer": ["B.", "C."]}
            for at in range(4)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, asides)))
    return tmp_path / "data"


@pytest.fixture
def setting(tmp_path: Path, data: Path, tiny_llm: LocalLLM) -> Iterator[Setting]:
    """A run on random weights, whose results are kept."""
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    scratch.mkdir()
    tiny_llm.model.save_pretrained(folder)
    tiny_llm.tokenizer.save_pretrained(folder)
    made = Setting(
        seed=0, full=False, data=data, scratch=scratch, out=tmp_path / "out", model=str(folder)
    )
    with closing(made):
        yield made


def test_the_smallest_split_is_a_request_and_what_is_in_none_is_kept(data: Path) -> None:
    found = tofu(data, retained=3)
    assert [len(part) for part in found.requests] == [40, 0, 0]
    assert {sample.topic for sample in found.retained} == {"author 0", "author 1", "author 2"}
    assert set(found.known).isdisjoint(found.requests[0])


def test_every_system_has_a_row_after_each_request_and_a_second_run_measures_nothing(
    setting: Setting,
) -> None:
    options: dict[str, Any] = {"parts": ("continual",), "systems": SYSTEMS, "sample": 2}
    first, second, _ = unlearn(setting, tokens=4, **options)
    assert [line["system"] for line in second.rows] == [TAUGHT, NEVER, *SYSTEMS]
    taught, never, ours, theirs = second.rows
    assert taught["of before"] in (1.0, None)  # random weights may be of no use at all
    assert never["forget quality"] == 1.0
    assert "opens" in ours and "opens" not in theirs and "minutes" in theirs
    assert setting.out is not None
    kept = (setting.out / "unlearn-points.jsonl").read_text()
    again, *_ = unlearn(setting, tokens=4, **options)
    assert again.rows == first.rows
    assert (setting.out / "unlearn-points.jsonl").read_text() == kept
