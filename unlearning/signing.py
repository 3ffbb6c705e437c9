"""The key that signs reports, and the one form of a report that is signed.

One Ed25519 key per data folder, made when it is first needed, kept unencrypted for its owner only:
whoever may read the folder may sign in its name. Knows nothing of what a report says.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LedgerError
from ..memory.chain import canonical
from ..memory.home import Home

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = ("keys", "reports.pem")


def sign(home: Home, body: Any) -> tuple[str, str]:
    """Sign plain JSON values with the folder's key; returns the public key and the signature, hex.

    Raises:
        LedgerError: the key cannot be made or read.
    """
    key = _key(home.path(*KEY))
    public = key.public_key().public_bytes_raw()
    return public.hex(), key.sign(_message(body)).hex()


def holds(public_key: str, signature: str, body: Any) -> bool:
    """Whether `signature` is that of `body` by the owner of `public_key`; both hex."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        public.verify(bytes.fromhex(signature), _message(body))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key(home: Home) -> str | None:
    """The folder's public key, hex; None if it has signed nothing yet."""
    path = home.path(*KEY)
    return _key(path).public_key().public_bytes_raw().hex() if path.exists() else None


def _message(body: Any) -> bytes:
    return canonical(body, "a report").encode()


def _key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if not path.exists():
            _make(path)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise LedgerError(
            f"the signing key {path} cannot be used ({error}); mend its rights, or move it away to"
            " have a new one made: reports signed before will then be of another key"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(f"the signing key {path} is no Ed25519 key; move it away")
    return key


def _make(path: Path) -> None:
    """Write a new key, whole or not at all."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
