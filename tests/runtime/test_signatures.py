"""Signatures: only what the owner of a key signed is installed, and nothing else is looked into."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from runtime import hostile

from edgecil.errors import DependencyMissing, UsageError
from edgecil.exporting.delta import make_delta
from edgecil.exporting.signing import new_key, sign_bundle
from edgecil_cli.app import run as edgecil
from edgecil_runtime import cli
from edgecil_runtime import install as installing
from edgecil_runtime.bundle import MANIFEST, MODEL, open_bundle
from edgecil_runtime.delta import (
    LITERAL,
    MAGIC,
    STREAMS,
    Step,
    Stream,
    encode_header,
    read_delta,
)
from edgecil_runtime.errors import BundleError, InputError, RuntimeMissing
from edgecil_runtime.hashing import sha256
from edgecil_runtime.install import install
from edgecil_runtime.signatures import SIGNATURE, load_public_key
from edgecil_runtime.slots import Slots

pytest.importorskip("onnx")
DOCUMENT = Path(__file__).parents[2] / "docs" / "updates.md"
missing = util.find_spec("cryptography") is None
signs = pytest.mark.skipif(missing, reason="cryptography is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Signed versions 1 and 2 and the delta between them, and a device with version 1."""
    if missing:
        pytest.skip("cryptography is not installed")
    spec = util.spec_from_file_location("toy_bundles", Path(__file__).with_name("conftest.py"))
    toys = util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    folder = tmp_path_factory.mktemp("made")
    new_key(folder / "ours.key")
    new_key(folder / "theirs.key")
    old, new = (open_bundle(toys.colour_bundle(folder, version=v, parent=v - 1)) for v in (1, 2))
    make_delta(old, new, folder)
    for bundle in (old, new):
        sign_bundle(bundle.path, folder / "ours.key")
    install(old.path, folder / "device", require_signature=folder / "ours.key.pub")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A copy of all that, to be changed."""
    return shutil.copytree(made, tmp_path / "place")


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def check_refused(place, source, words, key="ours.key.pub", error=BundleError):
    """Refused in one line, and the device is as it was."""
    device = place / "device"
    before = sorted(device.rglob("*")), (device / "state.json").read_bytes()
    with pytest.raises(error, match=words) as caught:
        install(place / source, device, require_signature=place / key)
    assert "\n" not in caught.value.message
    assert before == (sorted(device.rglob("*")), (device / "state.json").read_bytes())


def test_signed_bundles_and_deltas_are_installed_and_keep_their_signatures(place):
    delta, device, key = place / "toy-v2-from-v1.delta", place / "device", place / "ours.key.pub"
    assert Slots(device).current_path().joinpath(SIGNATURE).stat().st_size == 64
    said = []
    report = install(delta, device, require_signature=key, say=said.append)
    assert said[0].endswith(f"signed by key {load_public_key(key).fingerprint[:16]}")
    assert report.revision.version == 2
    assert files_of(report.path) == files_of(place / "toy-v2")
    assert Slots(device).rollback().revision.version == 1
    assert not install(place / "toy-v1", device, require_signature=key).changed


def test_a_signature_is_not_needed_where_none_is_required(place, toy, tmp_path):
    plain = toy.colour_bundle(tmp_path, version=3)
    sign_bundle(place / "toy-v2", place / "theirs.key")
    assert install(place / "toy-v2", place / "device").changed
    assert install(plain, place / "device").changed
    assert not (Slots(place / "device").current_path() / SIGNATURE).exists()


def rename_a_class(bundle):
    hostile.set_label(bundle, "rez")  # and the manifest seals itself anew


def another_model(bundle):
    hostile.put(bundle, MODEL, (bundle / MODEL).read_bytes() + b"\x72\x00")


def not_even_json(bundle):
    (bundle / MANIFEST).write_bytes(b"[" * 300_000)


def signature(data):
    return lambda bundle: (bundle / SIGNATURE).write_bytes(data)


def signature_of_another_version(bundle):
    shutil.copy(bundle.with_name("toy-v1") / SIGNATURE, bundle)


def link(bundle):
    (bundle / SIGNATURE).rename(bundle.with_name("outside.sig"))
    (bundle / SIGNATURE).symlink_to("../outside.sig")


def fifo(bundle):
    (bundle / SIGNATURE).unlink()
    os.mkfifo(bundle / SIGNATURE)


def endless(bundle):
    os.truncate(bundle / SIGNATURE, 1 << 40)


FORGED = "not one by key"


@pytest.mark.parametrize(
    "change, words",
    [
        (rename_a_class, FORGED),
        (another_model, FORGED),
        (not_even_json, FORGED),
        (signature(bytes(64)), FORGED),
        (signature(b"\xff" * 64), FORGED),
        (signature_of_another_version, FORGED),
        (signature(b""), "expected 64 bytes, got 0"),
        (signature(bytes(63)), "expected 64 bytes, got 63"),
        (lambda bundle: (bundle / SIGNATURE).unlink(), "is not signed, expected"),
    ],
)
def test_changed_bundles_and_wrong_signatures_are_refused(place, change, words):
    change(place / "toy-v2")
    check_refused(place, "toy-v2", words)


@pytest.mark.parametrize(
    "change, words",
    [
        (signature(bytes(65)), "at most 64"),
        (endless, "at most 64"),
        (link, "symbolic link"),
        (fifo, "not a plain file"),
    ],
)
def test_a_hostile_signature_is_refused_even_where_none_is_required(place, change, words):
    change(place / "toy-v2")
    for key in (None, place / "ours.key.pub"):
        with pytest.raises(BundleError, match=words):
            install(place / "toy-v2", place / "device", require_signature=key)


def test_a_model_changed_behind_a_signed_manifest_is_refused(place):
    model = place / "toy-v2" / MODEL
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    check_refused(place, "toy-v2", "SHA-256 does not match")


def test_another_key_is_refused(place):
    check_refused(place, "toy-v2", FORGED, key="theirs.key.pub")
    check_refused(place, "toy-v2-from-v1.delta", FORGED, key="theirs.key.pub")


def test_a_bundle_exchanged_after_its_signature_was_checked_is_refused(place, toy, monkeypatch):
    evil = toy.colour_bundle(place / "evil", version=3)
    shutil.copy(place / "toy-v2" / SIGNATURE, evil)

    def exchanging(path):
        if Path(path) == place / "toy-v2":
            shutil.copytree(evil, path, dirs_exist_ok=True)
        return open_bundle(path)

    monkeypatch.setattr(installing, "open_bundle", exchanging)
    with pytest.raises(BundleError, match=FORGED):
        install(place / "toy-v2", place / "device", require_signature=place / "ours.key.pub")
    assert Slots(place / "device").state().revision.version == 1


def test_deltas_without_the_right_signature_are_refused(place):
    path = place / "toy-v2-from-v1.delta"
    data, signed = path.read_bytes(), read_delta(path)
    elsewhere = signed.target._replace(manifest_sha256="0" * 64)
    for change, words in (
        ({"signature": bytes(64)}, FORGED),
        ({"signature": None}, "is not signed"),
        ({"signature": bytes(63)}, "a signature of 63 bytes"),
        ({"signature": b""}, "a signature of 0 bytes"),
        ({"target": elsewhere}, FORGED),
        ({"target": signed.target._replace(manifest_sha256="\ud800" * 64)}, "hex digits"),
    ):
        header = encode_header(signed._replace(**change))
        path.write_bytes(resealed(header + data[signed.start :], len(header)))
        check_refused(place, path.name, words)


def resealed(body, header_bytes):
    """Return a delta of header and streams whose hash is right."""
    return MAGIC + header_bytes.to_bytes(4, "little") + sha256(body).digest() + body


def test_a_delta_that_gives_another_bundle_than_was_signed_is_refused(place):
    # Whoever has no key can still put a good signature on streams of their own.
    path = place / "toy-v2-from-v1.delta"
    signed, evil = read_delta(path), b'{"name": "evil"}'
    files = {MANIFEST: (Step(LITERAL, 0, len(evil)),)}
    streams = {kind: Stream("stored", 0) for kind in STREAMS}
    streams[LITERAL] = Stream("stored", len(evil))
    header = encode_header(signed._replace(files=files, streams=streams))
    path.write_bytes(resealed(header + evil, len(header)))
    with pytest.raises(BundleError, match="does not give the manifest that it promises"):
        install(path, place / "device", require_signature=place / "ours.key.pub")
    assert Slots(place / "device").state().revision.version == 1


def test_a_delta_to_another_bundle_of_that_name_is_not_signed_along(place, toy):
    again = toy.colour_bundle(place / "again", version=2, parent=1, created="another day")
    shutil.copy(place / "toy-v2-from-v1.delta", place / "again")
    data = (place / "again" / "toy-v2-from-v1.delta").read_bytes()
    assert sign_bundle(again, place / "theirs.key").deltas == ()
    assert (place / "again" / "toy-v2-from-v1.delta").read_bytes() == data


def test_a_signed_older_version_cannot_pose_as_a_newer_one(place):
    device, key = place / "device", place / "ours.key.pub"
    install(place / "toy-v2", device, require_signature=key)
    old, new = open_bundle(place / "toy-v1"), open_bundle(place / "toy-v2")
    report = make_delta(new, old, place)
    back, data = read_delta(report.path), report.path.read_bytes()
    header = encode_header(back._replace(target=back.target._replace(version=3)))
    report.path.write_bytes(resealed(header + data[back.start :], len(header)))
    with pytest.raises(BundleError, match="is not the bundle that was announced"):
        install(report.path, device, require_signature=key)
    assert Slots(device).state().revision.version == 2


def test_a_delta_made_of_a_signed_bundle_is_signed(place):
    report = make_delta(open_bundle(place / "toy-v1"), open_bundle(place / "toy-v2"), place)
    assert read_delta(report.path).signature == (place / "toy-v2" / SIGNATURE).read_bytes()


def test_a_damaged_bundle_is_not_signed(place):
    before = (place / "toy-v2" / SIGNATURE).read_bytes()
    (place / "toy-v2" / MODEL).write_bytes(b"damaged")
    with pytest.raises(BundleError):
        sign_bundle(place / "toy-v2", place / "theirs.key")
    assert (place / "toy-v2" / SIGNATURE).read_bytes() == before


def test_keys_of_the_wrong_kind_are_refused(place):
    openssl = shutil.which("openssl")
    for name, content in (("garbage", b"\x00\xff"), ("empty", b""), ("long", b"x" * 100_000)):
        (place / name).write_bytes(content)
        check_refused(place, "toy-v2", "not an Ed25519 public key", key=name, error=InputError)
        with pytest.raises(UsageError, match="expected an Ed25519 private key"):
            sign_bundle(place / "toy-v2", place / name)
    check_refused(place, "toy-v2", "is a private key", key="ours.key", error=InputError)
    with pytest.raises(UsageError, match="a public key signs nothing"):
        sign_bundle(place / "toy-v2", place / "ours.key.pub")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (place / "ec.pub").write_bytes(other.public_key().public_bytes(*form))
    check_refused(place, "toy-v2", "not an Ed25519 public key", key="ec.pub", error=InputError)
    if openssl:
        subprocess.run(
            [openssl, "pkey", "-in", "ours.key", "-aes256", "-passout", "pass:x", "-out", "locked"],
            cwd=place, check=True,
        )  # fmt: skip
        with pytest.raises(UsageError, match="the key is encrypted"):
            sign_bundle(place / "toy-v2", place / "locked")


@signs
def test_a_new_key_overwrites_nothing_and_is_for_its_owner_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "my.key"
    assert edgecil(["sign", "--new-key", name]) == 0
    shown = capsys.readouterr()
    assert "keep it safe" in shown.out and "edgecil sign BUNDLE --key" in shown.err
    assert Path(name).stat().st_mode & 0o777 == 0o600
    before = files_of(tmp_path)
    assert load_public_key(f"{name}.pub").fingerprint[:16] in shown.out
    for taken in (name, f"{name}.pub"):
        assert edgecil(["sign", "--new-key", name]) == 2
        assert "is there already" in capsys.readouterr().err
        assert files_of(tmp_path) == before
        Path(taken).unlink()
        before = files_of(tmp_path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_openssl_makes_keys_and_checks_signatures(place):
    def openssl(*words):
        return subprocess.run(["openssl", *words], cwd=place, capture_output=True, check=False)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "ssl.key")
    openssl("pkey", "-in", "ssl.key", "-pubout", "-out", "ssl.pub")
    signed = sign_bundle(place / "toy-v2", place / "ssl.key")
    assert load_public_key(place / "ssl.pub").fingerprint == signed.fingerprint
    (recipe,) = re.findall(r"^printf .* > message$", DOCUMENT.read_text(), flags=re.MULTILINE)
    subprocess.run(["sh", "-c", f"cd toy-v2 && {recipe} && mv message .."], cwd=place, check=True)
    check = ("pkeyutl", "-verify", "-pubin", "-inkey", "ssl.pub", "-rawin", "-in", "message")
    done = openssl(*check, "-sigfile", f"toy-v2/{SIGNATURE}")
    assert b"Verified Successfully" in done.stdout, done.stderr
    done = openssl(*check, "-sigfile", f"toy-v1/{SIGNATURE}")
    assert done.returncode != 0


def test_the_commands_from_signing_to_installing(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert edgecil(["sign", "toy-v2", "--key", "theirs.key"]) == 0
    shown = capsys.readouterr()
    assert "toy-v2-from-v1.delta" in shown.out
    assert "edgecil-device install toy-v2-from-v1.delta --require-signature" in shown.err
    assert edgecil(["sign", "toy-v2"]) == 2
    assert "edgecil sign BUNDLE --key KEY" in capsys.readouterr().err
    assert edgecil(["sign", "toy-v2", "--key", "no.key", "--json"]) == 1
    capsys.readouterr()
    assert edgecil(["sign", "toy-v2", "--key", "theirs.key", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    key = ["--require-signature", "theirs.key.pub"]
    assert result["fingerprint"] == load_public_key("theirs.key.pub").fingerprint
    assert cli.main(["install", "toy-v1", "--root", "device", "--json", *key]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_bundle"
    garbled = ["--require-signature", MANIFEST]
    (place / MANIFEST).write_text("{}")
    assert cli.main(["install", "toy-v2", "--root", "device", *garbled]) == 1
    capsys.readouterr()
    for words, code, text in (
        (["toy-v2", *key], 0, f"signed   by key {result['fingerprint'][:16]}, verified"),
        (["toy-v2"], 0, "signed   yes, not checked"),
        (["toy-v1", *key], 4, FORGED),
    ):
        assert cli.main(["info", *words]) == code
        shown = capsys.readouterr()
        assert text in shown.out + shown.err
    (place / "toy-v1" / SIGNATURE).unlink()
    assert cli.main(["info", "toy-v1"]) == 0
    assert "signed   no\n" in capsys.readouterr().out


def test_without_cryptography_everything_but_signatures_works(colour, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert install(colour, tmp_path / "device").changed
    (tmp_path / "key").write_text("any")
    with pytest.raises(RuntimeMissing, match="needs the package cryptography") as caught:
        install(colour, tmp_path / "device", require_signature=tmp_path / "key")
    assert caught.value.hint == "pip install 'edgecil-runtime[sign]'"
    for attempt in (lambda: new_key(tmp_path / "k"), lambda: sign_bundle(colour, tmp_path / "key")):
        with pytest.raises(DependencyMissing, match="needs the package cryptography") as caught:
            attempt()
        assert caught.value.hint == "pip install 'edgecil[sign]'"
    assert not (tmp_path / "k").exists()
