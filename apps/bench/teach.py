"""A model taught a set of questions and answers, so that there is something to be unlearnt.

    python -m palimpsest.apps.bench.teach tofu --data DATA --out taught/tofu
    python -m palimpsest.apps.bench.teach tofu --without-forgotten --data DATA --out taught/retain
    python -m palimpsest.apps.bench.teach choices --data DATA --out taught/choices

The second is the model that was never taught what is to be forgotten: what unlearning is held
against. Every weight is trained, with AdamW on the answers alone; on a CPU in bfloat16 products of
float32 weights. The folders are plain checkpoints: `Agent.open("taught/tofu")`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ...editors.measuring import Prober, Question
from ...editors.rows import Row, Rows
from ...llm.local import LocalLLM
from ...llm.open import open_llm
from .unlearn_material import Sample, intents, science, tofu

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DOMAINS = ("work", "travel", "home", "banking", "kitchen_and_dining")
"""Of CLINC150; the paper unlearns the first three."""

EACH = 100
"""Sentences of each domain, and questions of each subject at most."""


def lessons(prober: Prober, samples: Sequence[Sample], end: Sequence[int]) -> list[Row]:
    """Each question as a message, its answer as the reply up to its end."""
    rows = [prober.row(Question(each.question, each.answer, chat=True)) for each in samples]
    return [(prompt, [*answer, *end]) for prompt, answer in rows]


def teach(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int = 0,
    told: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> list[float]:
    """Train every weight in place; returns the loss of each epoch.

    Args:
        rate: the highest, reached after a twentieth of the steps, from where it falls as a cosine.
    """
    draw = Random(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    steps = epochs * math.ceil(len(rows) / batch)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    curve, step = [], 0
    for _ in range(epochs):
        losses = []
        for part in _batches(rows, batch, draw):
            with torch.autocast(model.device.type, torch.bfloat16):
                loss = Rows.of(part, model.device).losses(model).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            step += 1
            told(step, steps, losses[-1])
        curve.append(sum(losses) / len(losses))
    return curve


def _batches(rows: Sequence[Row], size: int, draw: Random) -> list[list[Row]]:
    """All rows in batches of like length, so that little is padding, in any order."""
    by_length = sorted(rows, key=lambda row: len(row[0]) + len(row[1]) + 8 * draw.random())
    parts = [by_length[at : at + size] for at in range(0, len(by_length), size)]
    draw.shuffle(parts)
    return parts


def material(name: str, data: Path, *, without_forgotten: bool = False) -> list[Sample]:
    """What a model is taught under a name: "tofu" or "choices"."""
    if name == "tofu":
        found = tofu(data)
        return list(found.known if without_forgotten else found.everything)
    samples = [*science(data, EACH), *intents(data, DOMAINS, EACH)]
    return [each for each in samples if not each.held_out]


def main(
    name: Annotated[str, typer.Argument(help="tofu or choices")],
    data: Annotated[Path, typer.Option(help="the folder of data sets")],
    out: Annotated[Path, typer.Option(help="the folder to write the model to")],
    without_forgotten: bool = False,
    model: str = "smollm2",
    epochs: int = 6,
    rate: float = 2e-4,
    batch: int = 16,
    most: Annotated[int | None, typer.Option(help="samples at most")] = None,
) -> None:
    """Teach a model a set, and write it to a folder."""
    llm = open_llm(model)
    assert isinstance(llm, LocalLLM)
    samples = material(name, data, without_forgotten=without_forgotten)[:most]
    end = llm.tokenizer.eos_token_id
    prober = Prober(llm.model, llm.tokenizer)
    rows = lessons(prober, samples, [end] if isinstance(end, int) else [])
    torch.manual_seed(0)
    began = time.perf_counter()

    def told(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            seconds = time.perf_counter() - began
            typer.echo(f"{step}/{steps}  loss {loss:.3f}  {seconds:.0f} s", err=True)

    curve = teach(llm.model.float(), rows, epochs=epochs, rate=rate, batch=batch, told=told)
    llm.model.eval().save_pretrained(out)
    llm.tokenizer.save_pretrained(out)
    taught = {"set": name, "samples": len(samples), "epochs": epochs, "rate": rate, "batch": batch}
    taught |= {"without_forgotten": without_forgotten, "losses": curve}
    taught |= {"seconds": round(time.perf_counter() - began)}
    (out / "taught.json").write_text(json.dumps(taught, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
