"""`palimpsest bench needles`: can a model find what left its window long ago?

Pass keys hidden in books (Mohtashami & Jaggi 2023, arXiv 2305.16300) and pairs of keys and values
(Liu et al. 2023, arXiv 2307.03172), read once by each system; at every length some of what lies
beyond the window is asked for, each time on a fork of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean
from typing import TYPE_CHECKING

from ...errors import InputError
from . import haystack
from .harness import Row, Table, progress
from .haystack import Haystack, Needle
from .scm import at_least
from .setting import Setting

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ...llm.local import LocalLLM
    from ...memory.retention.cache import RetentionCache

LENGTHS = (4096, 8192, 16_384, 32_768, 65_536)
QUICK_LENGTHS = (4096,)
EACH = 16
"""Needles between one length and the next."""

ASKED = 16
"""Most questions at one length."""

WINDOW = 512
SINKS = 64

FAR = "window=512,sinks=64"
SYSTEMS = {
    "full attention": "full",
    "Lambda mask only": f"lm_infinite:{FAR}",
    "InfLLM": f"infllm:{FAR},block=32,k=32,stride=256,representatives=32",
    "InfLLM, 4 representatives": f"infllm:{FAR},block=32,k=32,stride=256",
    "retrieval, exact": f"retrieval:{FAR},k=100,stride=256",
}

BY_BLOCKS = ("InfLLM", "InfLLM, 4 representatives")

MOST_FULL = 16_384
"""Tokens that full attention is given; the time it takes grows with their square."""

TASKS: dict[str, Callable[..., Haystack]] = {
    "pass key": haystack.pass_keys,
    "key-value": haystack.pairs,
}

MEASURES = ("ranked", "told_apart", "exact")

INDEXED = 16_384
"""Most tokens that indexes are compared on; an index learns from the second half of them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether the right answer was likelier than others of its form, than answers to other
    questions on the text; and whether each of its tokens was the model's first choice."""

    ranked: bool
    told_apart: bool
    exact: bool


@dataclass(slots=True)
class Run:
    """What one system answered to one task, by length; at the longest, for each question and layer,
    the share of the needle's blocks that were found, and by chance."""

    answers: dict[int, list[Answer]] = field(default_factory=dict)
    found: list[list[tuple[float, float]]] = field(default_factory=list)


def needles(setting: Setting) -> Iterator[Table]:
    """Accuracy by length, the share of the gap that is closed, and what the lookups find."""
    from ...llm.local import LocalLLM

    if not isinstance(setting.llm, LocalLLM):
        raise InputError(f"model={setting.model!r} is served; this needs one in this process")
    import torch

    llm = setting.llm
    llm.model.to(torch.bfloat16)
    lengths = LENGTHS if setting.full else QUICK_LENGTHS
    encode = _encoder(llm)
    stacks, runs = {}, {}
    for task, make in TASKS.items():
        stack = make(encode, setting.data, lengths, EACH, setting.rng(task))
        stacks[task] = stack
        systems = [name for name in SYSTEMS if task == "pass key" or name not in BY_BLOCKS[1:]]
        for name in systems:
            progress(f"needles: {task}, {name}")
            runs[task, name] = _run(llm, SYSTEMS[name], stack, lengths, setting)
        yield _accuracy(task, {name: runs[task, name] for name in systems}, lengths)
    yield _layers({name: runs["pass key", name] for name in BY_BLOCKS}, lengths[-1])
    progress("needles: indexes")
    yield _indexes(llm, stacks["pass key"], min(lengths[-1], INDEXED))
    yield Table(title="what holds", rows=list(_checks(runs, lengths)))


def _encoder(llm: LocalLLM) -> haystack.Encode:
    return lambda text: list(llm.tokenizer.encode(text, add_special_tokens=False))


def _run(
    llm: LocalLLM, spec: str, stack: Haystack, lengths: Sequence[int], setting: Setting
) -> Run:
    """Read a text once, and ask at each length."""
    import torch

    from ...memory.retention import RetentionCache, open_policy, read
    from ...memory.retention.policies.infllm import InfLLM

    policy = open_policy(spec)
    cache, run, done = RetentionCache(llm.model, policy), Run(), 0
    ids = torch.tensor([stack.ids], device=llm.device)
    for length in lengths:
        if policy.budget is None and length > MOST_FULL:
            break
        read(llm.model, cache, ids[:, done:length])
        done = length
        past = [each for each in stack.needles if each.end < length - 2 * WINDOW]
        asked = setting.rng(f"{length}").sample(past, min(ASKED, len(past)))
        run.answers[length] = [_answer(llm.model, cache, needle) for needle in asked]
        if isinstance(policy, InfLLM) and length == lengths[-1]:
            run.found = [_found(llm.model, cache, needle, policy.block) for needle in asked]
    return run


def _answer(model: PreTrainedModel, cache: RetentionCache, needle: Needle) -> Answer:
    """Ask on a fork, and go on from there with each candidate."""
    import torch

    from ...memory.retention import read

    fork = cache.fork()
    first = read(model, fork, torch.tensor([needle.question]))
    assert first is not None
    right, exact = _said(model, fork, first, needle.answer)
    strange, rivals = (
        max(_said(model, fork, first, ids)[0] for ids in wrong)
        for wrong in (needle.strange, needle.rivals)
    )
    return Answer(right > strange, right > rivals, exact)


def _said(
    model: PreTrainedModel, cache: RetentionCache, first: Tensor, ids: list[int]
) -> tuple[float, bool]:
    """Mean log-probability of some tokens, and whether each is the likeliest."""
    import torch

    branch = cache.fork()
    rest, logits, done = torch.tensor([ids[:-1]], device=model.device), [first], 0
    with torch.no_grad(), branch.attached(model):
        while done < rest.shape[1]:
            some = rest[:, done : done + (branch.room or rest.shape[1])]
            read = model(input_ids=some, past_key_values=branch, use_cache=True)
            logits.append(read.logits[0].float())
            done += some.shape[1]
    chances = torch.cat(logits).log_softmax(-1)
    wanted = torch.tensor(ids, device=chances.device)
    picked = chances.gather(1, wanted[:, None])
    return float(picked.mean()), bool((chances.argmax(-1) == wanted).all())


def _found(
    model: PreTrainedModel, cache: RetentionCache, needle: Needle, block: int
) -> list[tuple[float, float]]:
    """In each layer, how much of the needle the question finds (see `found_blocks`)."""
    import torch

    from ...memory.retention import read
    from .lookups import found_blocks, listening

    fork = cache.fork()
    listeners = listening(fork)
    read(model, fork, torch.tensor([needle.question]))
    wanted = range((needle.start - SINKS) // block, (needle.end - 1 - SINKS) // block + 1)
    return [found_blocks(listener, wanted) for listener in listeners]


def _accuracy(task: str, runs: Mapping[str, Run], lengths: Sequence[int]) -> Table:
    rows: list[Row] = []
    for name, run in runs.items():
        row: dict[str, str | float] = {"system": name}
        for measure in MEASURES:
            for length, answers in run.answers.items():
                shares = fmean(getattr(answer, measure) for answer in answers)
                row[f"{measure.replace('_', ' ')} {_short(length)}"] = shares
        rows.append(row)
    asked = [len(answers) for answers in next(iter(runs.values())).answers.values()]
    worst = sqrt(0.25 / min(asked))
    return Table(
        title=f"{task}: answers beyond the window",
        rows=rows,
        note=f"{min(asked)} to {max(asked)} questions at a length, of what lies more than"
        f" {2 * WINDOW} tokens back; ranked: likelier than {haystack.OTHERS} of the same form that"
        " stand nowhere; told apart: than as many that answer other questions on the text (chance"
        f" {1 / (1 + haystack.OTHERS):g} for both, standard error up to {worst:.2f}); exact: each"
        " of its tokens is the likeliest",
        plot=tuple(f"ranked {_short(length)}" for length in lengths),
    )


def _short(length: int) -> str:
    return f"{length // 1024}k"


def _layers(runs: Mapping[str, Run], length: int) -> Table:
    """`runs` are those of InfLLM, by system."""
    rows: list[dict[str, str | float]] = []
    for layer in range(len(next(iter(runs.values())).found[0])):
        row: dict[str, str | float] = {"layer": str(layer)}
        for name, run in runs.items():
            row[name] = fmean(question[layer][0] for question in run.found)
            row["by chance"] = fmean(question[layer][1] for question in run.found)
        rows.append(row)
    mean = {name: fmean(float(row[name]) for row in rows) for name in rows[0] if name != "layer"}
    return Table(
        title=f"blocks of needles found, {_short(length)}",
        rows=[*rows, {"layer": "mean", **mean}],
        note="share of the blocks of pass keys that the questions for them read",
        plot=(*runs, "by chance"),
    )


def _indexes(llm: LocalLLM, stack: Haystack, length: int) -> Table:
    """Read a text, the end of it heard, and then a question, token by token."""
    import torch

    from ...memory.retention import RetentionCache, open_policy, read
    from .lookups import SCAN, index_rows, listening

    cache = RetentionCache(llm.model, open_policy(SYSTEMS["retrieval, exact"]))
    ids = torch.tensor([stack.ids[:length]], device=llm.device)
    read(llm.model, cache, ids[:, : length // 2])
    taught = listening(cache)
    read(llm.model, cache, ids[:, length // 2 :])
    fork = cache.fork()
    asked = [layer.far for layer in fork.layers]
    for token in stack.needles[0].question:
        read(llm.model, fork, torch.tensor([[token]]))
    return Table(
        title=f"indexes of far keys, {_short(length)}",
        rows=index_rows(taught, asked),
        note=f"means over layers; lists are made of {len(cache.layers[0].far)} keys of each KV"
        f" head, and {SCAN:.0%} of these are compared; mass: of far attention, by the keys found",
        plot=("mass",),
    )


def _checks(runs: Mapping[tuple[str, str], Run], lengths: Sequence[int]) -> Iterator[Row]:
    """The bar, where full attention was measured; and that lookups are no chance hits."""
    for task in TASKS:
        full, plain, ours = (
            runs[task, name] for name in ("full attention", "Lambda mask only", "InfLLM")
        )
        for length in (length for length in lengths if length in full.answers):
            high, low, mine = (_ranked(run, length) for run in (full, plain, ours))
            if high > low:
                share = (mine - low) / (high - low)
                yield at_least(f"{task} {_short(length)}: share of the gap closed", share, 0.7)
    found = [pair for question in runs["pass key", "InfLLM"].found for pair in question]
    share, chance = (fmean(column) for column in zip(*found, strict=True))
    yield at_least("blocks of needles found, times chance", share / chance, 2.0)


def _ranked(run: Run, length: int) -> float:
    return fmean(answer.ranked for answer in run.answers[length])
