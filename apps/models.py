"""`palimpsest models`: which models have a name, fetch them, say where they lie."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from .output import Json, emit, out, reporting

models = typer.Typer(name="models", help="List, fetch and find models.", no_args_is_help=True)


@models.command("list")
def list_models(json: Json = False) -> None:
    """The models that have a name, and whether they are here."""
    from ..llm.catalog import listing

    with reporting(json):
        rows = listing()
        if json:
            emit(
                [
                    {
                        "name": row.card.name,
                        "kind": row.card.kind,
                        "licence": row.card.licence,
                        "description": row.card.description,
                        "parameters": row.card.parameters,
                        "state": row.state,
                        "path": row.path,
                        "bytes": row.size,
                    }
                    for row in rows
                ]
            )
            return
        table = Table("name", "kind", "licence", "state", "MB", "what it is", box=None)
        for row in rows:
            card = row.card
            size = f"{row.size / 1e6:.0f}"
            table.add_row(card.name, card.kind, card.licence, row.state, size, card.description)
        out.print(table)


@models.command()
def pull(
    names: Annotated[list[str], typer.Argument(help='Names, or hub ids such as "org/name".')],
    json: Json = False,
) -> None:
    """Fetch models, check their sha256, and make them ready; goes on where it was interrupted."""
    from ..llm import catalog

    with reporting(json):
        pulled = {name: catalog.pull(name) for name in names}
        if json:
            emit(pulled)
        else:
            for name, path in pulled.items():
                out.print(f"{name}: {path}", markup=False, soft_wrap=True)


@models.command()
def where(
    name: str,
    check: Annotated[bool, typer.Option("--check", help="Read and verify every file.")] = False,
    json: Json = False,
) -> None:
    """The folder of a model that is on this machine."""
    from ..llm import catalog

    with reporting(json):
        path = catalog.verify(name) if check else catalog.resolve(name)
        emit({name: path}) if json else out.print(str(path), markup=False, soft_wrap=True)
