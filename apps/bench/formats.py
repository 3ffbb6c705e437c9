"""`palimpsest bench formats`: what storage formats of the cache cost and what they lose.

Formats are compared after an exact prompt, as the papers do, beside transformers' own quantised
cache; then as they are used, packing while a text is read; and by questions that nobody knew of
when the text was packed (SCBench, arXiv 2412.10319).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean, median, stdev
from typing import TYPE_CHECKING

import torch
from transformers.utils import is_optimum_quanto_available

from ...memory.retention import RetentionCache, open_policy, read
from ...memory.retention.formats.registry import open_format
from .format_caches import (
    FORMATS,
    FP8,
    QUANTO,
    QUICK,
    RESIDUAL,
    Held,
    in_format,
    loss,
    our_prompt,
    quantized,
    step_ms,
    their_prompt,
)
from .format_texts import Cloze, documents, facts
from .harness import Row, Table, progress
from .scm import at_least, at_most
from .setting import Setting

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKED, NEXT = 1024, 256
"""Tokens of the prompt that are packed, and tokens whose likelihood is measured."""

DOCUMENTS, MANY_DOCUMENTS, STREAMED = 2, 16, 4
TEXTS, MANY_TEXTS = 3, 30
"""Texts with questions; eight questions each."""

FACTS_WITHIN = 768
"""Packed tokens of a text of facts: three blocks of 256."""

READ_ON = ("int8", "int4", "int2", "gear:bits=2", "think:drop=0.4")
ASKED = (
    "plain",
    "int8",
    "int4",
    "int2",
    "GEAR, 2 bits, rank 4, 2 %",
    "ThinK, 40 %",
    "40 % at random",
)

LOSSLESS = 0.01
"""Nats a token: less is lossless for practical purposes."""

Measured = dict[str, list[Mapping[str, float]]]
"""System -> what was measured, a document each."""


def formats(setting: Setting) -> Iterator[Table]:
    """Three tables, and what holds."""
    packed = after_a_prompt(setting)
    yield packed
    if setting.full:
        yield while_reading(setting)
    asked = questions(setting)
    yield asked
    yield Table(title="what holds", rows=_checks(packed, asked))


def _model(setting: Setting) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from ...llm.local import LocalLLM

    assert isinstance(setting.llm, LocalLLM)
    return setting.llm.model, setting.llm.tokenizer


def _documents(setting: Setting, count: int) -> Iterator[tuple[str, Tensor]]:
    """A source and ids [1, PACKED + RESIDUAL + NEXT + 1] each."""
    _, tokenizer = _model(setting)
    for source, text in documents(setting, count):
        ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
        yield source, ids[:, : PACKED + RESIDUAL + NEXT + 1]


def after_a_prompt(setting: Setting) -> Table:
    """Bits, errors and likelihood of what follows, for our formats and transformers' own."""
    model, _ = _model(setting)
    measured: Measured = {}
    sources: list[str] = []
    for source, ids in _documents(setting, MANY_DOCUMENTS if setting.full else DOCUMENTS):
        progress(f"formats: {source}, document {len(sources) + 1}")
        sources.append(source)
        prompt, rest = ids[:, : PACKED + RESIDUAL], ids[:, PACKED + RESIDUAL :]
        for name, held in _all_held(model, prompt, FORMATS if setting.full else QUICK):
            found = {"nll": loss(model, held, rest), "ms": step_ms(model, held, rest)}
            found |= {"bits": held.bits, "keys": held.keys, "values": held.values}
            measured.setdefault(name, []).append(found)
    numbers = 2 * _kv_numbers(model)
    rows = [_row(name, measured[name], measured["plain"], numbers) for name in measured]
    if not is_optimum_quanto_available():
        rows += [{"system": f"{name}: not installed"} for name in QUANTO]
    return Table(
        title=f"{PACKED} packed tokens, the next {NEXT}",
        rows=rows,
        note=f"{len(sources)} documents ({', '.join(sorted(set(sources)))}); bits: of a packed"
        " number with scales and all, in a model of 16 bits; the newest"
        f" {RESIDUAL} tokens of ours are plain, transformers' packs all; error: relative, of all"
        " that is held; delta NLL: nats a token beside the plain cache",
        plot=("delta NLL",),
    )


def _all_held(
    model: PreTrainedModel, ids: Tensor, names: Iterable[str]
) -> Iterator[tuple[str, Held]]:
    """Our formats of these names, and all of transformers', with the prompt ids [1, P]."""
    ours = our_prompt(model, ids)
    for name in names:
        yield name, in_format(model, ours, FORMATS[name])
    theirs = their_prompt(model, ids)
    yield FP8, quantized(model, theirs, "fp8")
    if is_optimum_quanto_available():
        for name, options in QUANTO.items():
            yield name, quantized(model, theirs, "quanto", **options)


def _kv_numbers(model: PreTrainedModel) -> int:
    """Numbers in the keys of a token, all layers and heads."""
    config = model.config.get_text_config(decoder=True)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * config.num_key_value_heads * dim)


def _row(
    name: str,
    found: Sequence[Mapping[str, float]],
    plain: Sequence[Mapping[str, float]],
    numbers: int,
) -> Row:
    deltas = [each["nll"] - exact["nll"] for each, exact in zip(found, plain, strict=True)]
    bits = mean(each["bits"] for each in found)
    return {
        "system": name,
        "bits": round(bits, 2),
        "bytes/token": round(bits * numbers / 8),
        "error K": mean(each["keys"] for each in found),
        "error V": mean(each["values"] for each in found),
        "NLL": round(mean(each["nll"] for each in found), 4),
        "delta NLL": round(mean(deltas), 4),
        "± se": round(standard_error(deltas), 4),
        "ms/step": round(median(each["ms"] for each in found), 1),
    }


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; 0 for a single one."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def while_reading(setting: Setting) -> Table:
    """As formats are used: older tokens are packed as the text goes on, and so read by others."""
    model, _ = _model(setting)
    measured: dict[str, list[float]] = {}
    for source, ids in _documents(setting, STREAMED):
        progress(f"formats: reading {source}")
        for spec in ("plain", *READ_ON):
            cache = RetentionCache(model, open_policy("full"), open_format(spec))
            measured.setdefault(spec, []).append(_streamed(model, cache, ids))
    plain = measured.pop("plain")
    rows: list[Row] = []
    for spec, found in measured.items():
        deltas = [each - exact for each, exact in zip(found, plain, strict=True)]
        error = round(standard_error(deltas), 4)
        rows.append({"system": spec, "delta NLL": round(mean(deltas), 4), "± se": error})
    note = f"{STREAMED} documents; the last {NEXT} tokens of {PACKED + RESIDUAL + NEXT}"
    return Table(title="packed while reading", rows=rows, note=note)


@torch.no_grad()
def _streamed(model: PreTrainedModel, cache: RetentionCache, ids: Tensor) -> float:
    """Mean negative log-likelihood of the last NEXT tokens."""
    read(model, cache, ids[:, : -NEXT - 1])
    said, rest = [], ids[:, -NEXT - 1 : -1]
    with cache.attached(model):
        while rest.shape[1]:
            some, rest = rest[:, : cache.room or NEXT], rest[:, cache.room or NEXT :]
            said.append(model(input_ids=some, past_key_values=cache).logits[0].float())
    return float(torch.nn.functional.cross_entropy(torch.cat(said), ids[0, -NEXT:]))


def questions(setting: Setting) -> Table:
    """Cloze accuracy on two sets of questions, each asked of a fork of the packed text."""
    model, tokenizer = _model(setting)
    right: dict[str, dict[str, list[float]]] = {name: {"first": [], "second": []} for name in ASKED}
    texts, length = (MANY_TEXTS if setting.full else TEXTS), FACTS_WITHIN + RESIDUAL
    rng = setting.rng("facts")

    def count(text: str) -> int:
        return len(tokenizer(text, verbose=False).input_ids)

    for nth in range(texts):
        progress(f"formats: questions, text {nth + 1}")
        told = facts(rng, lambda text: count(text) > FACTS_WITHIN - RESIDUAL)
        prompt = our_prompt(model, tokenizer(told.text, return_tensors="pt").input_ids[:, :length])
        for name in ASKED:
            held = in_format(model, prompt, FORMATS[name])
            for which, asked in (("first", told.first), ("second", told.second)):
                right[name][which] += [_answered(setting, held, cloze) for cloze in asked]
    return Table(
        title="two questions that were unknown when the text was packed",
        rows=[_accuracy(name, found) for name, found in right.items()],
        note=f"{texts} texts of {length} tokens, {len(right['plain']['first'])} questions a cell,"
        " the likeliest of 4 ends; each asked of a fork of its own",
        plot=("first", "second"),
    )


def _answered(setting: Setting, held: Held, cloze: Cloze) -> float:
    """1 if the right end is the likeliest, by its first token; else 0."""
    model, tokenizer = _model(setting)
    cache = held.fork()
    assert isinstance(cache, RetentionCache)
    start = tokenizer(cloze.start, return_tensors="pt", add_special_tokens=False).input_ids
    said = read(model, cache, start)
    assert said is not None
    ends = [tokenizer(end, add_special_tokens=False).input_ids[0] for end in cloze.ends]
    return float(int(said[0, ends].argmax()) == 0)


def _accuracy(name: str, found: Mapping[str, Sequence[float]]) -> Row:
    row: dict[str, str | float] = {"system": name}
    for which, values in found.items():
        share = mean(values)
        error = math.sqrt(share * (1 - share) / len(values))
        row |= {which: round(share, 3), f"± se {which}": round(error, 3)}
    return row


def _checks(packed: Table, asked: Table) -> list[Row]:
    """Whether formats are as good as they are said to be; answers within two standard errors."""
    loss_of = {
        str(row["system"]): _number(row["delta NLL"]) for row in packed.rows if "bits" in row
    }
    answers = {str(row["system"]): row for row in asked.rows}
    rows = [
        at_most(f"{name}: delta NLL", loss_of[name], LOSSLESS)
        for name in ("int8", "int4", "ThinK, 40 %")
    ]
    query, key, chance = (loss_of[n] for n in ("ThinK, 40 %", "40 % by key norm", "40 % at random"))
    rows += [
        at_most("ThinK's choice beside the norm of keys", query - key, 0),
        at_most("the norm of keys beside chance", key - chance, 0),
        at_most(
            "GEAR at 2 bits beside int2", loss_of["GEAR, 2 bits, rank 4, 2 %"] - loss_of["int2"], 0
        ),
    ]
    for name in ("int8", "int4", "ThinK, 40 %"):
        row = answers[name]
        behind = _number(row["second"]) - _number(row["first"])
        bound = 2 * math.hypot(_number(row["± se first"]), _number(row["± se second"]))
        rows.append(at_least(f"{name}: second question beside first", behind, -round(bound, 3)))
        lost = _number(row["second"]) - _number(answers["plain"]["second"])
        rows.append(at_least(f"{name}: second question beside plain", lost, -0.05))
    return rows


def _number(cell: object) -> float:
    assert isinstance(cell, int | float)
    return float(cell)
