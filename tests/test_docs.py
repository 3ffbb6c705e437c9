"""What the pages promise is so: generated pages are fresh, examples run, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import palimpsest
import pytest
import torch
from palimpsest.llm.local import LocalLLM

ROOT = Path(palimpsest.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATE = ["-m", "typer", "palimpsest.apps.cli", "utils", "docs", "--name", "palimpsest"]


def test_the_command_line_page_is_what_the_help_texts_make(tmp_path: Path) -> None:
    fresh = tmp_path / "cli.md"
    command = [sys.executable, *GENERATE, "--title", "Command line", "--output", str(fresh)]
    subprocess.run(command, check=True, capture_output=True)
    assert fresh.read_text() == (ROOT / "docs" / "cli.md").read_text(), (
        f"docs/cli.md is stale; run: python {' '.join(GENERATE)} --title 'Command line'"
        " --output docs/cli.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "page", ["far_memory", "kv_compression", "retention", "sirllm", "streaming"]
)
def test_the_examples_of_the_retention_pages_run(page: str, tiny_llm: LocalLLM) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    ids = torch.arange(60)[None] % len(tiny_llm.tokenizer)
    given = {
        "model": tiny_llm.model,
        "ids": ids,
        "question": ids[:, :5],
        "turns": [ids[:, :20], ids[:, 20:]],
    }
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, given)


@pytest.mark.model
def test_the_readmes_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    *_, recalled, _, residue = done.stdout.splitlines()
    assert "The wifi password is heron." in recalled and residue == "0"
    assert "('The wifi password is tulip.', False)" in done.stdout
    assert (tmp_path / "mine" / "ledger.sqlite3").exists()
