"""Signing bundles, and the deltas that make them; ``edgecil_runtime.signatures`` checks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecil.errors import UsageError
from edgecil.exporting.delta import SUFFIX, sign_delta
from edgecil.exporting.packages import require_cryptography
from edgecil_runtime.bundle import open_bundle
from edgecil_runtime.container import write_atomic
from edgecil_runtime.delta import read_delta
from edgecil_runtime.revision import Revision
from edgecil_runtime.signatures import MAX_KEY_BYTES, SIGNATURE, fingerprint, signed_message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class KeyPair:
    """The PEM files of a new key pair; ``fingerprint`` tells keys apart (64 hex digits)."""

    private: Path
    public: Path
    fingerprint: str


@dataclass(frozen=True)
class Signed:
    """What was signed: the folder of a bundle, and the deltas beside it that make it."""

    bundle: Path
    deltas: tuple[Path, ...]
    fingerprint: str


def new_key(path: Path) -> KeyPair:
    """Return a new Ed25519 key pair: ``path``, readable by its owner alone, and ``path``.pub.

    Raises:
        UsageError: one of the files is there already; nothing is overwritten.
        DependencyMissing: ``cryptography`` is not installed.
        OSError: a file cannot be written.
    """
    require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    shared = path.with_name(path.name + ".pub")
    for file in (path, shared):
        if os.path.lexists(file):
            raise UsageError(f"{file} is there already", hint="give another name for the key")
    _write_new(path, private, 0o600)
    _write_new(shared, public, 0o644)
    return KeyPair(path, shared, fingerprint(key.public_key()))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sign_bundle(folder: Path, key_file: Path) -> Signed:
    """Return what was signed: the bundle in ``folder``, after checking all of it.

    Deltas beside it that make this very bundle get its signature as well. An earlier signature
    is replaced.

    Raises:
        UsageError: ``key_file`` holds no Ed25519 private key, or an encrypted one.
        DependencyMissing: ``cryptography`` is not installed.
        RuntimeFault: there is no such bundle, or it or a delta is damaged.
        OSError: a file cannot be read or written.
    """
    key = _private_key(key_file)
    bundle = open_bundle(folder)
    revision = Revision.of(bundle.path, bundle.manifest)
    beside = sorted(bundle.path.parent.glob(f"{revision.folder}-from-v*{SUFFIX}"))
    deltas = tuple(path for path in beside if read_delta(path).target == revision)
    signature = key.sign(signed_message(revision.manifest_sha256))
    write_atomic(bundle.path / SIGNATURE, signature)
    for path in deltas:
        sign_delta(path, signature)
    return Signed(bundle.path, deltas, fingerprint(key.public_key()))


def _private_key(path: Path) -> Ed25519PrivateKey:
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with open(path, "rb") as file:
        data = file.read(MAX_KEY_BYTES)
    key: Any = None
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError(
            f"{path}: the key is encrypted",
            hint=f"decrypt it: openssl pkey -in {path} -out OTHER, and remove that one afterwards",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        pass
    if not isinstance(key, Ed25519PrivateKey):
        public = "a public key signs nothing: " if b"PUBLIC KEY" in data else ""
        raise UsageError(
            f"{path}: {public}expected an Ed25519 private key in PEM form",
            hint="make one: edgecil sign --new-key FILE",
        )
    return key
