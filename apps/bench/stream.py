"""`palimpsest bench stream`: a text beyond any window, at constant memory and time per token.

The same tokens under every policy, at equal budgets; full attention beside them as far as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...llm.local import LocalLLM
from ...memory.retention import open_policy
from ...memory.retention.policies.registry import POLICIES
from .dialogue import book
from .harness import Row, Table, progress
from .scm import at_least, at_most
from .setting import Setting
from .streaming import (
    Chunk,
    Decoding,
    binned,
    decoding,
    largest_difference,
    ms_per_token,
    nll,
    streamed,
    within,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BOOK = "war_and_peace_2600"
SAMPLE = Path(__file__).parents[2] / "tests" / "data" / "time_machine_chapter_1.txt"
BEYOND = 1.25
"""How far full attention goes, in windows of the model."""

FULL, WINDOW = "full attention", "sliding window"
BOUND = ("sinks + window", "sirllm", "lm_infinite", "infllm")
"""Those that have to hold."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is read.

    Args:
        length: tokens of the text.
        mark: where the model knows its way, to compare the end with.
        stretch: tokens before either of the two over which times are taken.
        size: tokens of a bin.
        budget: tokens near.
        steps: tokens decoded one by one.
    """

    length: int
    mark: int
    stretch: int
    size: int
    budget: int
    steps: int


LONG = Plan(length=100_000, mark=8_000, stretch=4_000, size=1_000, budget=1_024, steps=256)
SHORT = Plan(length=2_304, mark=1_024, stretch=512, size=256, budget=256, steps=64)


def stream(
    setting: Setting, *, dtype: str = "bfloat16", plan: Plan | None = None
) -> Iterator[Table]:
    """Perplexity, time and memory over the text; decoding one by one; exactness.

    Args:
        dtype: of the model that reads the long text. Decoding and exactness are in float32.
        plan: how much is read; by default a little, or with --full 100,000 tokens.
    """
    plan = plan or (LONG if setting.full else SHORT)
    exact = _local(setting, "float32")
    quick = exact if dtype == "float32" else _local(setting, dtype)
    ids = _text(setting, quick, plan)
    specs = policies(plan.budget)
    read: dict[str, list[Chunk]] = {}
    for name, spec in specs.items():
        progress(f"{name}: {plan.length} tokens")
        most = max(plan.mark, int(quick.context_window * BEYOND))
        some = ids[:, :most] if name == FULL else ids
        read[name] = list(streamed(quick.model, open_policy(spec), some))
    progress("the end of the text, read afresh")
    end = ids[:, -plan.mark :]
    afresh = nll(list(streamed(quick.model, open_policy("full"), end)), plan.stretch, plan.mark)
    perplexity = _perplexity(read, plan, afresh, dtype)
    yield perplexity
    cost = _cost(read, plan)
    yield cost
    yield _memory(read, plan)
    decoded = _decoding(exact, specs, ids, plan)
    yield decoded
    exactness = _exactness(exact.model, ids)
    yield exactness
    yield Table(title="what holds", rows=[*_checks(perplexity, cost, decoded, exactness)])


def policies(budget: int) -> dict[str, str]:
    """Specs by name, each with at most `budget` tokens near. InfLLM reads as many: a half of them
    in its window, six sixteenths in blocks that it looks up."""
    sixteenth = budget // 16
    lmi = f"window={budget - 2 * sixteenth - 4},sinks=4,stride={2 * sixteenth}"
    inf = f"window={8 * sixteenth},sinks={sixteenth},block={sixteenth},k=6,stride={2 * sixteenth}"
    specs = {
        FULL: "full",
        WINDOW: f"window:budget={budget}",
        "sinks + window": f"sinks:budget={budget}",
        "sirllm": f"sirllm:budget={budget}",
        "lm_infinite": f"lm_infinite:{lmi}",
        "infllm": f"infllm:{inf}",
    }
    return {name: spec for name, spec in specs.items() if spec.partition(":")[0] in POLICIES}


def _missing() -> str:
    """A word on policies that are not there, so that nobody takes their absence for a choice."""
    gone = [name for name in BOUND if name not in policies(1_024)]
    return f"; not registered, so left out: {', '.join(gone)}" if gone else ""


def _local(setting: Setting, dtype: str) -> LocalLLM:
    if dtype == "float32" and isinstance(setting.llm, LocalLLM):
        return setting.llm
    from ...llm.catalog import resolve

    return LocalLLM.load(resolve(setting.model), dtype=dtype, name=setting.model)


def _text(setting: Setting, llm: LocalLLM, plan: Plan) -> Tensor:
    """ids [1, length] of a book, or of the sample in a checkout."""
    if setting.data is None and not SAMPLE.is_file():
        raise InputError("outside a checkout there is no sample; name a folder with --data")
    text = SAMPLE.read_text() if setting.data is None else book(setting.data, BOOK)
    ids: Tensor = llm.tokenizer(text, return_tensors="pt", verbose=False).input_ids
    if ids.shape[1] < plan.length:
        raise InputError(
            f"the text has {ids.shape[1]} tokens, and {plan.length} are to be read; name a folder"
            " that has books with --data"
        )
    return ids[:, : plan.length]


def _perplexity(
    read: Mapping[str, Sequence[Chunk]], plan: Plan, afresh: float, dtype: str
) -> Table:
    """The end is also compared with full attention that began `mark` tokens before it: what a
    policy lost on the way, whatever the text is like there."""
    tail = (plan.length - plan.mark + plan.stretch, plan.length)
    rows: list[Row] = []
    for name, chunks in read.items():
        row: dict[str, str | float] = {"policy": name, "tokens": chunks[-1].end}
        start = nll(chunks, 0, plan.mark)
        row["perplexity to the mark"] = math.exp(start)
        if chunks[-1].end == plan.length:
            here, whole = nll(chunks, *tail), nll(chunks, 0, plan.length)
            row["of all"] = math.exp(whole)
            row["ratio to the mark"] = math.exp(whole - start)
            row["of the end"] = math.exp(here)
            row["ratio to afresh"] = math.exp(here - afresh)
        rows.append(row)
    return Table(
        title="Perplexity of an endless text",
        rows=rows,
        note=f"mark: {plan.mark} tokens; end: the last {tail[1] - tail[0]}; afresh: those under"
        f" full attention that began {plan.mark} tokens before the end ({math.exp(afresh):.3g});"
        f" budget {plan.budget}; {dtype}{_missing()}",
        points=[
            {"policy": name, "tokens": end, "NLL": mean}
            for name, chunks in read.items()
            for end, mean in binned(chunks, plan.size)
        ],
        curve=("tokens", "NLL"),
    )


def _ends(chunks: Sequence[Chunk], plan: Plan) -> tuple[list[Chunk], list[Chunk]]:
    """Those before the mark and those before the end."""
    end = chunks[-1].end
    return within(chunks, plan.mark - plan.stretch, plan.mark), within(
        chunks, end - plan.stretch, end
    )


def _cost(read: Mapping[str, Sequence[Chunk]], plan: Plan) -> Table:
    rows: list[Row] = []
    for name, chunks in read.items():
        first, last = (ms_per_token(some) for some in _ends(chunks, plan))
        rows.append(
            {
                "policy": name,
                "tokens": chunks[-1].end,
                "ms/token at the mark": first,
                "ms/token at the end": last,
                "ratio": last.median / first.median,
                "tokens/s": 1000 / last.median,
            }
        )
    return Table(
        title="Time per token",
        rows=rows,
        note=f"medians over the chunks of the last {plan.stretch} tokens before either",
        points=[
            {"policy": name, "tokens": chunk.end, "ms per token": chunk.ms}
            for name, chunks in read.items()
            for chunk in chunks
        ],
        curve=("tokens", "ms per token"),
    )


def _memory(read: Mapping[str, Sequence[Chunk]], plan: Plan) -> Table:
    rows: list[Row] = []
    for name, chunks in read.items():
        first, last = (some[-1] for some in _ends(chunks, plan))
        rows.append(
            {
                "policy": name,
                "tokens": last.end,
                "resident MB at the mark": first.resident,
                "resident MB at the end": last.resident,
                "cache MB at the mark": first.cache,
                "cache MB at the end": last.cache,
                "tokens stored": last.stored,
            }
        )
    return Table(
        title="Memory",
        rows=rows,
        note="resident: of the whole process, models included; one policy after the other",
        points=[
            {
                "policy": name,
                "tokens": chunk.end,
                "cache MB": chunk.cache,
                "resident MB": chunk.resident,
            }
            for name, chunks in read.items()
            for chunk in chunks
        ],
        curve=("tokens", "cache MB"),
    )


def _decoding(llm: LocalLLM, specs: Mapping[str, str], ids: Tensor, plan: Plan) -> Table:
    found: dict[str, Decoding] = {}
    for name, spec in specs.items():
        progress(f"decoding: {name}")
        policy = open_policy(spec)
        before = ids[:, : 2 * plan.budget if policy.budget else plan.budget]
        size = plan.budget - policy.stride // 2 if policy.budget else plan.budget
        found[name] = decoding(llm.model, policy, before, size, plan.steps)
    return Table(
        title="Decoding, one token at a time",
        rows=[
            {
                "policy": name,
                "tokens": each.size,
                "ms, ours": each.ours,
                "ms, DynamicCache": each.theirs,
                "speed": each.ratio,
                "speed, evictions included": each.whole,
            }
            for name, each in found.items()
        ],
        note="beside transformers' cache of equal size, in turns; speed: theirs by ours; float32",
    )


def _exactness(model: PreTrainedModel, ids: Tensor) -> Table:
    """Budgets that cover the text change nothing."""
    some = ids[:, :256]
    specs = {**policies(1_024), "random": "random:budget=1024", "h2o": "h2o:budget=1024"}
    rows: list[Row] = []
    for name, spec in specs.items():
        progress(f"exactness: {name}")
        policy = open_policy(spec)
        rows.append(
            {
                "policy": name,
                "at once": largest_difference(model, policy, some, 256),
                "in chunks of 48": largest_difference(model, policy, some, 48),
            }
        )
    return Table(
        title="Largest difference of a logit to transformers' cache",
        rows=rows,
        note="256 tokens, all within the budget; float32",
    )


def _checks(perplexity: Table, cost: Table, decoded: Table, exactness: Table) -> Iterator[Row]:
    for row in perplexity.rows:
        if row["policy"] in BOUND:
            for column in ("ratio to the mark", "ratio to afresh"):
                measured = _cell(row, column)
                yield at_most(f"{row['policy']}: perplexity, {column}", measured, 1.1)
    for row in cost.rows:
        if row["policy"] in BOUND:
            yield at_most(f"{row['policy']}: time per token, ratio", _cell(row, "ratio"), 1.1)
    for row in decoded.rows:
        if row["policy"] != "infllm":  # reads blocks, of which transformers has none
            yield at_least(f"{row['policy']}: speed of decoding", _cell(row, "speed"), 0.9)
    worst = max(_cell(row, each) for row in exactness.rows for each in list(row)[1:])
    yield at_most("difference to transformers' cache", worst, 1e-4)


def _cell(row: Row, column: str) -> float:
    return float(row[column])  # type: ignore[arg-type]  # a number in each of them
