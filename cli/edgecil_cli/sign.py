"""``edgecil sign``: a signature for a bundle, so that devices know whose it is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgecil.errors import UsageError
from edgecil_cli._options import JsonOption, QuietOption, value
from edgecil_cli._output import Output, short
from edgecil_runtime.signatures import SHOWN_DIGITS

EPILOG = """\
Examples:

  edgecil sign --new-key release.key

  edgecil sign classifier-v2 --key release.key
"""


def sign(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A bundle's folder.", show_default=False),
    ] = None,
    key: Annotated[
        Path | None, value("Ed25519 private key to sign with, a PEM file.", "KEY")
    ] = None,
    new_key: Annotated[
        Path | None, value("Make a key pair instead: FILE and FILE.pub.", "FILE")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Sign a bundle and its deltas, or make a key pair."""
    output = Output("sign", as_json=as_json, quiet=quiet)
    if new_key is not None and bundle is None and key is None:
        _new_key(output, new_key)
    elif new_key is None and bundle is not None and key is not None:
        _sign(output, bundle, key)
    else:
        raise UsageError(
            "expected a bundle and a key, or a new key alone",
            hint="edgecil sign BUNDLE --key KEY   or   edgecil sign --new-key FILE",
        )


def _new_key(output: Output, path: Path) -> None:
    from edgecil.exporting import signing

    pair = signing.new_key(path)
    output.result(vars(pair), value_only=str(pair.public))
    if output.for_people:
        rows = [
            ("private key", f"{short(pair.private)} (keep it safe, and off every device)"),
            ("public key", f"{short(pair.public)} (for the devices)"),
            ("fingerprint", pair.fingerprint[:SHOWN_DIGITS]),
        ]
        output.pairs(rows)
        output.next(f"edgecil sign BUNDLE --key {shlex.quote(str(pair.private))}")


def _sign(output: Output, bundle: Path, key: Path) -> None:
    from edgecil.exporting import signing

    signed = signing.sign_bundle(bundle, key)
    output.result(vars(signed), value_only=str(signed.bundle))
    if output.for_people:
        rows = [("signed", short(signed.bundle))]
        rows += [("", short(delta)) for delta in signed.deltas]
        output.pairs([*rows, ("by key", signed.fingerprint[:SHOWN_DIGITS])])
        ships = shlex.quote(short((*signed.deltas, signed.bundle)[0]))
        output.next(f"edgecil-device install {ships} --require-signature PUBKEY")
