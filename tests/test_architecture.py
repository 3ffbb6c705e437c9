"""The house in order: imports run downwards, the core names no method, importing stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import palimpsest
import pytest
from palimpsest.memory.registry import MEMORIES, READERS, SELECTORS

ROOT = Path(palimpsest.__file__).parent
FLOORS = ("kernels", "llm", "memory", "editors", "unlearning", "agent", "apps")
LEVEL = {name: level for level, name in enumerate(FLOORS)} | {"unlearning": FLOORS.index("editors")}
SOURCES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imported_floors(path: Path) -> set[str]:
    """Top-level folders of this package that a module imports from."""
    package = path.relative_to(ROOT).parent.parts
    floors = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                target = (*package[: len(package) - node.level + 1],)
                parts = (*target, *(node.module or "").split("."))
            else:
                parts = tuple((node.module or "").split("."))
                parts = parts[1:] if parts[0] == "palimpsest" else ()
            floors |= {part for part in parts[:1] if part in LEVEL}
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("palimpsest") for alias in node.names), (
                f"{path}: imports inside the package are relative"
            )
    return floors


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_only_downwards(path: Path) -> None:
    mine = LEVEL[path.relative_to(ROOT).parts[0]]
    upwards = {floor for floor in imported_floors(path) if LEVEL[floor] > mine}
    assert not upwards, f"{path.relative_to(ROOT)} imports from above itself: {sorted(upwards)}"


def test_an_upward_import_would_be_noticed(tmp_path: Path) -> None:
    module = ROOT / "memory" / "base.py"
    assert "llm" in imported_floors(module)
    assert LEVEL["agent"] > LEVEL["memory"] > LEVEL["llm"]


def strings_and_names(path: Path) -> set[str]:
    """Every string constant that is no docstring, and every imported module's name."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words.add(node.value)
        if isinstance(node, ast.ImportFrom):
            words |= set((node.module or "").split("."))
    return words


CORE = [
    *sorted((ROOT / "agent").rglob("*.py")),
    *sorted((ROOT / "llm").rglob("*.py")),
    *(ROOT / "apps" / name for name in ("cli.py", "chat.py", "why.py", "output.py")),
    *(ROOT / "memory" / name for name in ("base.py", "ledger.py", "projection.py")),
    ROOT / "memory/search/index.py",
]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_method(path: Path) -> None:
    methods = {*MEMORIES, *READERS, *SELECTORS}
    modules = {"stream", "recent", "retention", "banks", "longmem", "reloop2"}
    assert not strings_and_names(path) & (methods | modules)


def test_every_registry_row_can_be_imported() -> None:
    for registry in (MEMORIES, READERS, SELECTORS):
        for name in registry:
            assert callable(registry.load(name))


def test_the_public_names_are_complete_and_sorted() -> None:
    names = list(palimpsest.__all__)
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    for name in names:
        assert getattr(palimpsest, name) is not None
    assert set(palimpsest._LAZY) | {"errors"} == set(names)


def best_seconds(code: str, runs: int = 3) -> float:
    """Least processor time that `code` takes in a fresh interpreter: what a person waits for on an
    idle machine, and unlike the wall clock no measure of who else is busy."""

    def run(source: str) -> float:
        timed = f"import time; t = time.process_time()\n{source}\nprint(time.process_time() - t)"
        done = subprocess.run(
            [sys.executable, "-c", timed], capture_output=True, text=True, check=True
        )
        return float(done.stdout.splitlines()[-1])

    return min(run(code) for _ in range(runs))


def test_importing_the_package_is_light() -> None:
    assert best_seconds("import palimpsest") <= 0.3


def test_the_help_page_comes_at_once() -> None:
    code = "import sys; sys.argv = ['palimpsest', '--help']\n"
    code += "from palimpsest.apps.cli import main\ntry:\n  main()\nexcept SystemExit: pass"
    assert best_seconds(code) <= 0.5


def test_importing_has_no_effects_on_logging_or_random_state() -> None:
    code = """
import logging, random, sys
before = random.getstate(), list(logging.root.handlers)
import palimpsest
assert (random.getstate(), list(logging.root.handlers)) == before
assert not {"torch", "transformers", "chromadb"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
