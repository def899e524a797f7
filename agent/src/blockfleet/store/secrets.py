# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets at rest: AES-256-GCM under a key of the host, and keyed fingerprints to compare without showing.

The host key is the systemd credential ``blockfleet.key`` where the service manager passes one (then it can be
bound to the TPM), else a file that only the owner may read.  Two keys are derived from it (HKDF-SHA256, RFC
5869): one encrypts, one makes fingerprints.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc

KEY_BYTES = 32
NONCE_BYTES = 12
SHOWN_FINGERPRINT = 8
"""Hexadecimal digits of a fingerprint that leave the host."""

CREDENTIAL = "blockfleet.key"
KEY_FILE = "host.key"


class SecretUnreadable(Exception):
    """A stored secret cannot be decrypted: another host key, or damage."""


class SecretBox:
    """Encrypts, decrypts and fingerprints under one host key.

    ``from_credential`` is false for a key that lies in a plain file beside what it protects.
    """

    def __init__(self, host_key: bytes, *, from_credential: bool) -> None:
        self._cipher = AESGCM(_derive(host_key, b"blockfleet secret encryption"))
        self._fingerprint_key = _derive(host_key, b"blockfleet secret fingerprint")
        self.key_id = _derive(host_key, b"blockfleet key identifier")[:8].hex()
        self.from_credential = from_credential

    @classmethod
    def open(cls, state_dir: Path, credentials_directory: str | None = None) -> SecretBox:
        """Read the host key, and make one on first use.

        ``credentials_directory`` is what systemd puts into ``$CREDENTIALS_DIRECTORY``; by default that is read.
        Raises :class:`BlockfleetError` STATE_UNUSABLE for a key that is damaged or that others may read.
        """
        directory = (
            os.environ.get("CREDENTIALS_DIRECTORY") if credentials_directory is None else credentials_directory
        )
        if directory:
            path = Path(directory) / CREDENTIAL
            if path.exists():
                return cls(_checked(path.read_bytes(), path), from_credential=True)
        return cls(_key_file(state_dir / KEY_FILE), from_credential=False)

    def encrypt(self, record: str, field: str, value: bytes) -> bytes:
        """Return nonce and ciphertext, bound to the record, the field and the key."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, self._context(record, field))

    def decrypt(self, record: str, field: str, key_id: str, blob: bytes) -> bytes:
        """Return the secret; raises :class:`SecretUnreadable`."""
        if key_id != self.key_id:
            raise SecretUnreadable(f"{field} of {record} is encrypted under the host key {key_id}")
        try:
            return self._cipher.decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], self._context(record, field))
        except (InvalidTag, ValueError):
            raise SecretUnreadable(f"{field} of {record} is damaged") from None

    def fingerprint(self, value: bytes) -> str:
        """Return 64 hexadecimal digits: equal for equal values under one host key, useless without it."""
        return hmac.digest(self._fingerprint_key, value, "sha256").hex()

    def _context(self, record: str, field: str) -> bytes:
        return f"{record}\0{field}\0{self.key_id}".encode()


def _derive(host_key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(host_key)


def _checked(key: bytes, path: Path) -> bytes:
    if len(key) != KEY_BYTES:
        raise BlockfleetError(
            Isdsc.STATE_UNUSABLE,
            f"the host key {path} has {len(key)} bytes instead of {KEY_BYTES}",
            remedy="restore it from a backup, or remove it and declare the secrets again",
        )
    return key


def _key_file(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _make_key_file(path)
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise BlockfleetError(
                Isdsc.STATE_UNUSABLE,
                f"the host key {path} has mode {mode:04o}, so others may have read it",
                remedy="chmod 600 it and change the secrets that it protects",
            )
        return _checked(file.read(KEY_BYTES + 1), path)


def _make_key_file(path: Path) -> bytes:
    """Create the key so that it is whole or not there: written beside, synced, then linked without replacing."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    os.link(draft, path)
    draft.unlink()
    sync_directory(path.parent)
    return key


def sync_directory(path: Path) -> None:
    """Make renames and creations in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
