"""Others' figures for sequential editing, as they were published; nothing here was measured."""

from __future__ import annotations

from collections.abc import Mapping

from .harness import Row

SOURCE = (
    "Wang et al., WISE, NeurIPS 2024 (arXiv 2405.14768v3), Rel/Gen/Loc by teacher forcing after T"
    " edits, on other records than ours; reruns by others disagree (EasyEdit issues 487, 531)"
)

_LLAMA = {
    "FT-L": (".57/.52/.96", ".48/.48/.76", ".30/.27/.23", ".19/.16/.03"),
    "FT-EWC": (".96/.95/.02", ".82/.76/.01", ".83/.74/.08", ".76/.69/.08"),
    "MEND": (".95/.93/.98", ".26/.28/.28", "0/0/0", "0/0/0"),
    "ROME": (".85/.80/.99", ".64/.62/.75", ".23/.22/.04", ".01/.01/.00"),
    "MEMIT": (".84/.81/.99", ".58/.58/.85", ".02/.02/.02", ".04/.04/.02"),
    "MEMIT-MASS": (".84/.81/.99", ".75/.72/.97", ".76/.68/.85", ".69/.65/.62"),
    "DEFER": (".68/.58/.56", ".65/.47/.36", ".20/.12/.27", ".03/.03/.74"),
    "GRACE": (".99/.36/1.0", ".96/.16/1.0", ".96/.15/1.0", ".93/.08/1.0"),
    "WISE": (".98/.92/1.0", ".94/.88/1.0", ".90/.81/1.0", ".77/.72/1.0"),
}
_MISTRAL = {"WISE": (".98/.97/1.0", ".92/.89/1.0", ".87/.80/1.0", ".70/.67/1.0")}


def _rows(model: str, table: Mapping[str, tuple[str, ...]]) -> list[Row]:
    heads = ("T=1", "T=10", "T=100", "T=1000")
    return [
        {"method": name, "model": model, **dict(zip(heads, cells, strict=True))}
        for name, cells in table.items()
    ]


ZSRE = [*_rows("LLaMA-2-7B", _LLAMA), *_rows("Mistral-7B", _MISTRAL)]

HALLUCINATION: list[Row] = [
    {
        "method": "WISE",
        "model": "LLaMA-2-7B",
        "T=1": "1.91/1.0",
        "T=10": "1.04/1.0",
        "T=100": "1.14/1.0",
        "T=600": "3.12/.99",
    },
    {"method": "GRACE", "model": "LLaMA-2-7B", "T=600": "9.34/1.0"},
    {"method": "MEMIT-MASS", "model": "LLaMA-2-7B", "T=600": "13.47/.94"},
    {"method": "ROME", "model": "LLaMA-2-7B", "T=600": "104.9/.02"},
    {"method": "WISE", "model": "Mistral-7B", "T=600": "5.21/.93"},
]

TEMPORAL: list[Row] = [
    {"method": "WISE", "model": "GPT-J-6B", "T=10": ".99/.36/.98", "T=75": ".96/.37/1.0"},
    {"method": "GRACE", "model": "GPT-J-6B", "T=10": ".97/.28/1.0", "T=75": ".97/.28/1.0"},
    {"method": "MEMIT-MASS", "model": "GPT-J-6B", "T=75": ".78/.27/.97"},
]
