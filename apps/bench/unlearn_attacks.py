"""The certificate of forget01, with all that a user rarely has: samples of the same kind that were
never taught, translations, and attacks that train or round the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...unlearning.attacks.language import Language
from ...unlearning.attacks.registry import DEFAULT
from ...unlearning.certificate import certify
from .harness import Row, Table, progress
from .unlearn_lab import Laboratory, Plan, request, told
from .unlearn_material import tofu
from .unlearn_measures import spread, translations

STRANGERS = 16
"""Questions on authors whom no model was taught."""


def attacks(lab: Laboratory, plan: Plan) -> Iterator[Table]:
    """For each system a certificate: what every attack brought before and after."""
    every = lab.tofu
    bench = lab.bench("tofu")
    taught = {sample.topic for sample in every.everything}
    others = [s for s in tofu(lab.setting.dataset(), None).retained if s.topic not in taught]
    made = [
        Language(translations=translations()) if isinstance(each, Language) else each
        for each in DEFAULT
    ]
    asked = request("forget01", every.requests[0])
    whole = replace(
        asked,
        samples=tuple(
            replace(one, paraphrases=(sample.paraphrase,) if sample.paraphrase else ())
            for one, sample in zip(asked.samples, every.requests[0], strict=True)
        ),
    )
    for system in plan.systems:
        progress(f"attacks: {system}")
        pupil = lab.pupil(bench, system)
        pupil.study("forget01", every.requests[0], every.known, plan.retain)
        certificate = certify(
            bench,
            pupil.patch(),
            whole,
            strangers=told(spread(others, STRANGERS)),
            retain=told(spread(every.retained, 8)),
            attacks=made,
            thorough=plan.full,
        )
        rows: list[Row] = [
            {
                "attack": found.attack,
                "measured": found.yardstick,
                "before": found.before,
                "after": found.after,
                "limit": found.limit,
                "stood": found.stood,
                "samples": found.samples,
            }
            for found in certificate.findings
        ]
        kept = ", ".join(f"{name} {value:.3f}" for name, value in certificate.kept.items())
        yield Table(
            title=f"Certificate of forget01: {system}",
            rows=rows,
            note=f"{certificate.seconds:.0f} s; kept: {kept}; not tried:"
            f" {'; '.join(certificate.unchecked)}",
            plot=("before", "after"),
        )
