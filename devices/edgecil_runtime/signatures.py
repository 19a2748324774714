"""Who made a bundle: an optional Ed25519 signature in ``manifest.sig``, beside the manifest.

What is signed is a fixed prefix and the SHA-256 of the file ``manifest.json``, which holds those
of all other files: so the signature of a bundle can be checked before any of it is parsed, and
that of a delta's outcome before the delta is applied. The mathematics is that of the package
``cryptography``, which nothing else needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from edgecil_runtime.bundle import MANIFEST
from edgecil_runtime.errors import BundleError, InputError, RuntimeMissing
from edgecil_runtime.hashing import sha256
from edgecil_runtime.images import PathLike
from edgecil_runtime.manifest import MAX_MANIFEST_BYTES
from edgecil_runtime.plain_files import read_plain_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE = "manifest.sig"
SIGNATURE_BYTES = 64  # RFC 8032, section 5.1.6
MAX_KEY_BYTES = 10_000
SHOWN_DIGITS = 16
"""As many digits of a fingerprint as people compare."""
_PURPOSE = "edgecil bundle signature v1\0"  # a signature made for anything else never fits


class PublicKey(NamedTuple):
    """A public key: whom to believe. ``fingerprint`` is the SHA-256 of its DER form, in hex."""

    fingerprint: str
    key: Ed25519PublicKey


def signed_message(manifest_sha256: str) -> bytes:
    """Return the bytes that are signed for the manifest with this SHA-256 (64 hex digits)."""
    return (_PURPOSE + manifest_sha256).encode("ascii")


def load_public_key(path: PathLike) -> PublicKey:
    """Return the Ed25519 public key in a PEM file.

    Raises:
        InputError: the file holds anything else, such as the private key.
        RuntimeMissing: the package ``cryptography`` is not installed.
        OSError: the file cannot be read.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise RuntimeMissing(
            f"checking a signature needs the package cryptography: {error}",
            hint="pip install 'edgecil-runtime[sign]'",
        ) from None
    with open(path, "rb") as file:
        data = file.read(MAX_KEY_BYTES)
    if b"PRIVATE KEY" in data:
        raise InputError(
            f"{os.fspath(path)}: is a private key; a device needs the public one alone",
            hint=f"openssl pkey -in {os.fspath(path)} -pubout   (and keep this one off devices)",
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(
            f"{os.fspath(path)}: not an Ed25519 public key in PEM form",
            hint="give the .pub file that 'edgecil sign --new-key' wrote",
        )
    return PublicKey(fingerprint(key), key)


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key as 64 hex digits.

    The same as ``openssl pkey -pubin -in KEY.pub -outform DER | sha256sum``.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return str(sha256(data).hexdigest())


def read_signature(folder: PathLike) -> Optional[bytes]:
    """Return the signature of the bundle in ``folder``, unchecked, or None when there is none.

    Raises:
        BundleError: the file is a link, a device, or not of the one right size.
    """
    path = Path(folder, SIGNATURE)
    if not os.path.lexists(path):
        return None
    signature = read_plain_file(path, SIGNATURE_BYTES)
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(
            f"{path}: expected {SIGNATURE_BYTES} bytes, got {len(signature)}",
            hint="copy the bundle again",
        )
    return signature


def check_signed(folder: PathLike, key: PublicKey) -> None:
    """Do nothing when the manifest in ``folder`` is signed by ``key``; nothing else is read.

    Raises:
        BundleError: it is not, or the manifest is missing, a link or too large.
    """
    signature = read_signature(folder)
    manifest = read_plain_file(Path(folder, MANIFEST), MAX_MANIFEST_BYTES)
    check_signature(signature, str(sha256(manifest).hexdigest()), key, folder)


def check_signature(
    signature: Optional[bytes], manifest_sha256: str, key: PublicKey, source: PathLike
) -> None:
    """Do nothing when ``signature`` is that of ``key`` for the manifest with this SHA-256.

    Raises:
        BundleError: it is not, or there is none; ``source`` is named.
    """
    from cryptography.exceptions import InvalidSignature

    short = key.fingerprint[:SHOWN_DIGITS]
    if signature is None:
        raise BundleError(
            f"{os.fspath(source)}: is not signed, expected a signature by key {short}",
            hint="on the workstation: edgecil sign BUNDLE --key KEY, then copy it again",
        )
    try:
        key.key.verify(signature, signed_message(manifest_sha256))
    except InvalidSignature:
        raise BundleError(
            f"{os.fspath(source)}: the signature is not one by key {short}, "
            "or what it signs was changed",
            hint="get it again from whoever holds the key; do not install it without a check",
        ) from None
