"""What editors are measured on: facts to be learnt, and how each is asked for afterwards.

ZsRE (Levy et al. 2017) in the form that WISE uses it, CounterFact (Meng et al. 2022), and a few
facts of our own for where there is no data folder.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...editors.base import Edit
from ...errors import InputError

SAMPLE = Path(__file__).with_name("edit_facts.jsonl")
COUNTERFACT = 500
"""Records of CounterFact that "all" means, about as many as ZsRE has."""


@dataclass(frozen=True, slots=True)
class Fact:
    """An edit, and what it is tested with. Nothing of the test is given to the editor.

    Args:
        paraphrase: another way to ask.
        elsewhere: a prompt that must not move, and its true answer.
        near: prompts about the same subject that ask for something else.
    """

    edit: Edit
    paraphrase: str
    elsewhere: tuple[str, str]
    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """Some facts that are edited one after the other, and then asked for."""

    name: str
    facts: Sequence[Fact]


def facts(name: str, data: Path | None, most: int | None = None) -> list[Fact]:
    """The first facts of "zsre", "counterfact", "counterfact-train" or "sample".

    Raises:
        InputError: there is no such set, or `data` lacks it.
    """
    if name == "sample":
        records = _records(SAMPLE)
    elif data is None:
        raise InputError(f"set {name!r} is in no folder; name one with --data, or take 'sample'")
    elif name == "zsre":
        records = _records(data / "zsre" / "zsre_edit.jsonl")
    elif name in ("counterfact", "counterfact-train"):
        file = "counterfact_edit" if name == "counterfact" else "counterfact_train"
        most = COUNTERFACT if most is None else most
        records = _records(data / "counterfact" / f"{file}.jsonl.gz")
    else:
        raise InputError(f"set {name!r} must be zsre, counterfact, counterfact-train or sample")
    return [_fact(record) for record in records[:most]]


def texts(name: str, data: Path, most: int) -> list[Fact]:
    """The first of "hallucination" or "temporal"; a paraphrase is another text on the same thing,
    "" where there is none."""
    files = {
        "hallucination": data / "selfcheckgpt_edit" / "hallucination_edit.jsonl.gz",
        "temporal": data / "temporal_edit" / "temporal_edit.jsonl",
    }
    records = _records(files[name])[:most]
    return [
        _fact({"rephrase_prompt": record.get("ood_rephrase", ""), **record}) for record in records
    ]


def same_subject(data: Path, most: int) -> list[Fact]:
    """Facts of CounterFact's training part that share a subject, each with the others' prompts."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in _records(data / "counterfact" / "counterfact_train.jsonl.gz"):
        groups[record["subject"]].append(record)
    found = [_pair(one, other) for one, other, *_ in _several(groups)]
    return found[:most]


def _several(groups: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[list[Mapping[str, Any]]]:
    for records in groups.values():
        if len({record["prompt"] for record in records}) > 1:
            yield records


def _pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> Fact:
    return _fact({**one, "near_prompt": other["prompt"]})


def windows(name: str, every: Sequence[Fact], size: int, sample: int) -> list[Window]:
    """Disjoint stretches of `size` facts, as many as `sample` facts fill, at least one."""
    count = max(1, min(sample, len(every)) // size)
    return [Window(f"{name} {size} #{n}", every[n * size : (n + 1) * size]) for n in range(count)]


def _fact(record: Mapping[str, Any]) -> Fact:
    """A flat record, as EasyEdit has them. `loc_prompt` is the irrelevant statement that WISE
    learns beside an edit; no prompt of the test is among them."""
    prompt, subject = record["prompt"], record.get("subject")
    named = subject and subject.casefold() in prompt.casefold()
    beside = record.get("loc_prompt")
    return Fact(
        edit=Edit(
            prompt=prompt,
            target=record["target_new"],
            subject=subject if named else None,
            locality=((beside, ""),) if beside else (),
        ),
        paraphrase=record["rephrase_prompt"],
        elsewhere=(record["locality_prompt"], record["locality_ground_truth"]),
        near=(record["near_prompt"],) if "near_prompt" in record else (),
    )


def _records(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSONL file, gzipped or not.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there; name a folder of data sets that has it with --data")
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.decode().strip().split("\n")]
