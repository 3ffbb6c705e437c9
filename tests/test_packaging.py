"""The wheel holds the whole package, and nothing of it is imported from the checkout."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import palimpsest

ROOT = Path(palimpsest.__file__).parent
IGNORED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "site")

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import palimpsest
home = pathlib.Path(palimpsest.__file__).parent
assert str(home).startswith(sys.prefix), home
names = [m.name for m in pkgutil.walk_packages([str(home)], "palimpsest.")]
for name in names:
    if not name.endswith("migrations.env"):
        importlib.import_module(name)
print("\\n".join(names))
"""


def test_the_wheel_installs_in_a_clean_venv_and_every_module_imports(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=IGNORED)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("palimpsest-*.whl")

    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    python = clean / "bin" / "python"
    site = clean / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    install = ["install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], check=True)
    # Third-party packages come from this environment; a path file does not pull in its
    # editable installs, so `palimpsest` can only be the one from the wheel.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    done = subprocess.run(
        [python, "-W", "ignore", "-c", IMPORT_ALL], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    expected = {
        ".".join(("palimpsest", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for folder in ("agent", "apps", "kernels", "llm", "memory", "unlearning")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert expected <= modules, f"not in the wheel: {sorted(expected - modules)}"
    assert not any(name.startswith("palimpsest.tests") for name in modules)
