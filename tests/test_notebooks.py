"""Every notebook runs top to bottom on the embedded model."""

from pathlib import Path

import nbformat
import palimpsest
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(palimpsest.__file__).parent / "notebooks").glob("*.ipynb"))


@pytest.mark.model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*zmq.*:RuntimeWarning")
def test_a_notebook_runs_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    plots = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert plots, "a notebook shows something"
