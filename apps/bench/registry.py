"""The benches by name. To add one: its own file, one row here, one row in its test."""

from __future__ import annotations

from ...registry import Registry

BENCHES = Registry(
    "bench",
    {
        "edit": ".apps.bench.edit:edit",
        "fit": ".apps.bench.fit:fit_weights",
        "forget": ".apps.bench.forget:forget",
        "formats": ".apps.bench.formats:formats",
        "kernels": ".apps.bench.kernels:kernels",
        "needles": ".apps.bench.needles:needles",
        "ood": ".apps.bench.ood:ood",
        "poison": ".apps.bench.poison:poison",
        "recall": ".apps.bench.recall:recall",
        "scm": ".apps.bench.scm:scm",
        "sirllm": ".apps.bench.surprise:sirllm",
        "sort": ".apps.bench.sort:sort",
        "store": ".apps.bench.store:store",
        "stream": ".apps.bench.stream:stream",
        "unlearn": ".apps.bench.unlearn:unlearn",
    },
    group="palimpsest.benches",
)
