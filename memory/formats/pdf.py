"""PDF as text, page by page. What is only a picture of text is none."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

from ...errors import InputError
from .base import Document


def parse(data: bytes, name: str) -> Iterator[Document]:
    """A document for each page with text, called by the PDF's title or its name.

    Raises:
        InputError: it is encrypted, broken, or has no text.
    """
    from pypdf import PdfReader

    log = logging.getLogger("pypdf")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it has to say is said once, by the error
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{name!r} is encrypted; save it without a password")
        title = str(reader.metadata.title or "") if reader.metadata else ""
        pages = [_plain(page.extract_text()) for page in reader.pages]
    except InputError:
        raise
    except Exception as error:
        # A broken file can make the parser fail with anything at all, and says so here.
        raise InputError(
            f"{name!r} cannot be read as PDF ({type(error).__name__}: {error}); save it anew"
        ) from error
    finally:
        log.setLevel(level)
    if not any(pages):
        raise InputError(f"{name!r} has no text, only pictures; run text recognition over it")
    for number, text in enumerate(pages, 1):
        if text:
            yield Document(text=text, title=title.strip()[:200] or name, meta={"page": number})


def _plain(text: str) -> str:
    """Without what no record can hold, and with words whole that a line's end had cut in two."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    return re.sub(r"(?<=[^\W\d_])-\n(?=[a-zß-ÿ])", "", text).strip()
