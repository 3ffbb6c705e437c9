from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from palimpsest.errors import ConfigError, HomeLocked, LedgerError
from palimpsest.memory.home import Home

HOLDER = """
import sys, time
from palimpsest.memory.home import Home
with Home(sys.argv[2]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, "chat", str(home), "my name is Maria"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_home_is_made_for_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    assert home.root.is_dir()
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_a_home_is_not_made_to_be_looked_at(tmp_path: Path) -> None:
    home = Home(tmp_path / "none", make=False)
    assert home.holder() is None
    assert not home.root.exists()


def test_who_holds_a_home_can_be_asked_without_taking_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with another_process(tmp_path) as process:
        assert f"process {process.pid} on " in str(home.holder())
    assert home.holder() is None
    with home.lock():
        assert f"process {os.getpid()}" in str(home.holder())
    assert home.holder() is None


def test_a_home_is_what_is_given_or_else_the_variable_or_else_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "by-variable"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home(tmp_path / "given").root == (tmp_path / "given").resolve()
    assert Home().root == (tmp_path / "by-variable").resolve()
    assert Home("~/tilde").root == (tmp_path / "tilde").resolve()
    monkeypatch.delenv("PALIMPSEST_HOME")
    assert Home().root.is_relative_to(tmp_path.resolve())
    assert Home().root.name == "palimpsest"


def test_a_path_stays_inside(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.path("stores", "scm") == home.root / "stores" / "scm"
    assert home.path("a/../b") == home.root / "b"
    (home.root / "link").symlink_to(tmp_path)
    for parts in (("..",), ("stores", "../../x"), ("/etc/passwd",), ("link", "x")):
        with pytest.raises(ConfigError, match="leads out"):
            home.path(*parts)


def test_a_lock_is_for_one_and_names_its_holder_without_a_persons_words(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with another_process(tmp_path) as process:
        with pytest.raises(HomeLocked) as caught, home.lock():
            pass
        message = str(caught.value)
        assert f"process {process.pid} on " in message and "since 20" in message
        assert "'-c chat'" in message and "--home" in message
        assert "Maria" not in message + (tmp_path / "lock.json").read_text()


def test_a_first_argument_that_is_no_command_is_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/palimpsest", "I am Maria"])
    with Home(tmp_path).lock():
        assert json.loads((tmp_path / "lock.json").read_text())["command"] == "palimpsest"


def test_a_lock_is_free_again_after_its_holder(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for _ in range(2):
        with home.lock():
            assert json.loads(home.path("lock.json").read_text())["pid"] == os.getpid()
    assert not home.path("lock.json").exists()
    with pytest.raises(ZeroDivisionError), home.lock():
        raise ZeroDivisionError
    with home.lock():
        pass


def test_two_agents_of_one_process_cannot_hold_the_same_home(tmp_path: Path) -> None:
    with (
        Home(tmp_path).lock(),
        pytest.raises(HomeLocked, match=f"process {os.getpid()} "),
        Home(tmp_path).lock(),
    ):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "lock.json").exists()
    with Home(tmp_path).lock():
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_a_holder_file_that_cannot_be_read_does_not_hide_the_lock(tmp_path: Path) -> None:
    with another_process(tmp_path):
        for content in ("{", "[]", '{"pid": 1}'):
            (tmp_path / "lock.json").write_text(content)
            with pytest.raises(HomeLocked, match="another process"), Home(tmp_path).lock():
                pass


def test_a_home_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="PALIMPSEST_HOME"):
        Home(tmp_path / "file" / "home")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_a_read_only_home_is_reported() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(LedgerError, match="writable"), Home(folder).lock():
            pass
        with pytest.raises(LedgerError, match="writable"):
            Home(folder / "inside")
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)
