"""Signatures, compared with those of the real ssh-keygen."""

import json
import os
import re
import shutil
import subprocess
from itertools import product

import pytest
from click.testing import CliRunner
from conftest import ROOT
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hscc_search.cli.entry import commands
from hscc_search.errors import ConfigError, ExportError, HsccError
from hscc_search.export.index import Asked, Index
from hscc_search.export.manifest import write_manifest
from hscc_search.export.run import MOST_MANIFEST, Refused, listed
from hscc_search.export.signature import check_signature, fingerprint, read_public_key, read_signing_key, sign
from hscc_search.export.verifying import verify

COMMENT = "somebody@somewhere"


def keygen(*arguments, cwd, given=None):
    command = ["ssh-keygen", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=given, capture_output=True, check=True).stdout.decode()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder of keys: ``own``, ``other``, with a password ``locked``, and others in PEM and of other kinds."""
    if shutil.which("ssh-keygen") is None:
        assert "CI" not in os.environ, "no ssh-keygen"
        pytest.skip("no ssh-keygen")
    folder = tmp_path_factory.mktemp("keys")
    for name, password in (("own", ""), ("other", ""), ("locked", "secret")):
        keygen("-q", "-t", "ed25519", "-N", password, "-C", COMMENT, "-f", folder / name, cwd=folder)
    keygen("-q", "-t", "ecdsa", "-N", "", "-f", folder / "ecdsa", cwd=folder)
    own, plain = read_signing_key(folder / "own"), serialization.NoEncryption()
    pem, secret = serialization.Encoding.PEM, serialization.BestAvailableEncryption(b"secret")
    for name, kept in (("own.pem", plain), ("locked.pem", secret)):
        (folder / name).write_bytes(own.private_bytes(pem, serialization.PrivateFormat.PKCS8, kept))
    public = own.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "own.pub.pem").write_bytes(public)
    (folder / "known").write_text(f"somebody {(folder / 'own.pub').read_text()}")
    return folder


@pytest.fixture
def manifest(tmp_path):
    """A folder with a manifest of one file."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"a model")
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def signed(exported, keys, tmp_path_factory):
    """The exported folder, signed with ``own``."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("signed") / "folder")
    sign(folder, read_signing_key(keys / "own"))
    return folder


@pytest.mark.parametrize("name", ["own", "own.pem"])
def test_ssh_keygen_accepts_what_is_written_here(keys, manifest, name):
    sign(manifest, read_signing_key(keys / name))
    own, content = manifest / "manifest.json.sig", (manifest / "manifest.json").read_bytes()
    check = ["-Y", "verify", "-f", keys / "known", "-I", "somebody", "-n", "hscc-search", "-s", own]
    assert fingerprint(read_public_key(keys / "own.pub")) in keygen(*check, cwd=manifest, given=content)
    with pytest.raises(subprocess.CalledProcessError):
        keygen(*check, cwd=manifest, given=content + b" ")
    keygen("-Y", "sign", "-f", keys / "own", "-n", "hscc-search", "theirs", cwd=copied(manifest, "theirs"))
    assert (manifest / "theirs.sig").read_bytes().split() == own.read_bytes().split()


def test_the_commands_of_the_page_on_exported_folders_run(keys, manifest):
    page = (ROOT / "studies" / "EXPORTED.md").read_text()
    commands = re.findall("^ssh-keygen -Y .*", page, re.MULTILINE)
    assert len(commands) == 2
    words = {"KEY": keys / "own", "KNOWN": keys / "known", "NAME": "somebody", "mine-compressed": manifest}
    for command in commands:
        command = re.sub("|".join(words), lambda found: str(words[found[0]]), command)
        subprocess.run(command, shell=True, check=True, capture_output=True)
    check_signature(manifest, read_public_key(keys / "own.pub"))


def copied(folder, name):
    shutil.copyfile(folder / "manifest.json", folder / name)
    return folder


@pytest.mark.parametrize("hashed", ["sha512", "sha256"])
@pytest.mark.parametrize("public", ["own.pub", "own.pub.pem"])
def test_what_ssh_keygen_writes_is_accepted_here(keys, manifest, public, hashed):
    options = ("-Y", "sign", "-f", keys / "own", "-n", "hscc-search", "-O", f"hashalg={hashed}")
    keygen(*options, "manifest.json", cwd=manifest)
    check_signature(manifest, read_public_key(keys / public))
    assert fingerprint(read_public_key(keys / public)) in keygen("-l", "-f", keys / "own.pub", cwd=manifest)


def invoked(*words):
    return CliRunner().invoke(commands, list(map(str, words)))


def test_a_signed_folder_is_verified_and_says_with_which_key(signed, keys):
    said = invoked("verify", signed, "--key", keys / "own.pub").stdout
    assert re.search(r"^signature: the manifest is signed with .*own.pub \(SHA256:[\w+/]{43}\)$", said, re.MULTILINE)
    assert verify(signed).signed_by is None
    assert "signature: there is one, not checked: --key PUBLIC checks it" in invoked("verify", signed).stdout


def refused(folder, key):
    with pytest.raises(HsccError) as caught:
        verify(folder, key=key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_signature_and_one_of_another_key_manifest_or_purpose_are_refused(exported, signed, keys, tmp_path):
    assert "is not signed: it has no manifest.json.sig" in refused(exported, keys / "own.pub")
    message = refused(signed, keys / "other.pub")
    for name in ("own", "other"):
        assert fingerprint(read_public_key(keys / f"{name}.pub")) in message
    changed = shutil.copytree(signed, tmp_path / "changed")
    (changed / "README.md").write_text("another card")
    assert "README.md was changed since the export" in refused(changed, keys / "own.pub")
    write_manifest(changed)
    assert "manifest.json is not what was signed" in refused(changed, keys / "own.pub")
    (changed / "manifest.json.sig").unlink()
    keygen("-Y", "sign", "-f", keys / "own", "-n", "file", "manifest.json", cwd=changed)
    assert "was made for something else: ssh-keygen -Y sign needs -n hscc-search" in refused(changed, keys / "own.pub")
    (changed / "manifest.json.sig").unlink()
    keygen("-Y", "sign", "-f", keys / "ecdsa", "-n", "hscc-search", "manifest.json", cwd=changed)
    assert "is of another key" in refused(changed, keys / "own.pub")
    (changed / "manifest.json.sig").unlink()
    (changed / "manifest.json.sig").symlink_to(signed / "manifest.json.sig")
    assert "manifest.json.sig is no regular file" in refused(changed, keys / "own.pub")


def test_a_manifest_that_is_written_again_names_no_signature_and_one_that_is_too_large_is_not_read(manifest):
    key, path = Ed25519PrivateKey.from_private_bytes(bytes(32)), manifest / "manifest.json"
    sign(manifest, key)
    write_manifest(manifest)
    check_signature(manifest, key.public_key())
    assert listed(manifest).keys() == {"model.onnx"}
    path.write_bytes(path.read_bytes().ljust(MOST_MANIFEST + 1))
    said = f"manifest.json is larger than {MOST_MANIFEST:,} bytes"
    with pytest.raises(ExportError, match=said):
        check_signature(manifest, key.public_key())
    with pytest.raises(Refused, match=said):
        listed(manifest)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_signature_with_anything_else_in_it_is_refused_in_one_line(manifest, data):
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    sign(manifest, key)
    path = manifest / "manifest.json.sig"
    before = path.read_bytes()
    check_signature(manifest, key.public_key())
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(before))] * 2)))
    path.write_bytes(before[:start] + data.draw(st.binary(max_size=8) | st.just(before)) + before[end:])
    if path.read_bytes().split() == before.split():
        return
    try:
        check_signature(manifest, key.public_key())
    except ExportError as error:
        assert "\n" not in str(error)
    else:  # of spaces alone
        assert b"".join(path.read_bytes().split()) == b"".join(before.split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "cannot read key .*nowhere: No such file.*: give the file of one key"),
        ("", "is no regular file: give the file of one key, as ssh-keygen -t ed25519 -f KEY writes it"),
        ("locked", "locked has a password, and none is asked for: .*ssh-keygen -Y sign -f KEY -n hscc-search"),
        ("locked.pem", "locked.pem has a password"),
        ("ecdsa", "ecdsa holds no private Ed25519 key: ssh-keygen -t ed25519"),
        ("own.pub", "holds no private Ed25519 key"),
        ("own.pub.pem", "holds no private Ed25519 key"),
        ("known", "holds no private Ed25519 key"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_before_the_study_is_read(keys, tmp_path, name, words):
    with pytest.raises(ConfigError, match=words):
        read_signing_key(keys / name)
    done = invoked("export", "no", "--storage", f"sqlite:///{tmp_path}/no.db", "--out", "out", "--sign", keys / name)
    assert isinstance(done.exception, ConfigError)
    assert re.search(words, str(done.exception))
    assert "\n" not in str(done.exception)
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize("name", ["own", "own.pem", "ecdsa.pub", "known", "nowhere"])
def test_a_key_that_cannot_check_is_refused(exported, keys, name):
    message = refused(exported, keys / name)
    assert re.search("cannot read key" if name == "nowhere" else "holds no public Ed25519 key", message)
    assert "BEGIN" not in message


def test_without_cryptography_the_package_to_install_is_named(monkeypatch, keys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for read in (read_signing_key, read_public_key):
        with pytest.raises(ConfigError, match=r"pip install 'hscc-search\[sign\]'"):
            read(keys / "own")


def test_a_signed_folder_tells_neither_the_place_of_the_key_nor_its_comment(signed, keys):
    for path in signed.iterdir():
        content = path.read_bytes()
        assert COMMENT.encode() not in content
        assert str(keys).encode() not in content
    assert "manifest.json.sig" not in json.loads((signed / "manifest.json").read_text())["sha256"]


def test_a_front_goes_on_with_folders_of_the_same_key_alone(signed, keys, short_index, tmp_path):
    out, key = tmp_path / "front", read_signing_key(keys / "own")
    index = short_index(fingerprint(key.public_key()))
    index.claim(out, key)
    shutil.copytree(signed, out / index.folders()[0])
    index.claim(out, key)
    with pytest.raises(ExportError, match=r"signed_by: SHA256:.* -> None"):
        short_index(None).claim(out)
    (out / index.folders()[0] / "manifest.json.sig").unlink()
    with pytest.raises(ExportError, match="remove it, and the same command writes it again"):
        index.claim(out, key)


@pytest.fixture
def short_index(study):
    """An index of one trial: ``short_index(signed_by)``."""

    def make(signed_by):
        choice = study.ranked()[0]
        asked = Asked("digits", "data", "weights", 0, False, (choice.point.trial,), signed_by=signed_by)
        return Index(asked, (choice,), ("a", "b"), ("accuracy",), None)

    return make


@pytest.mark.parametrize("end", [b"", b" \n\n", b"\r\n"])
@pytest.mark.parametrize("name", ["own.pub", "own.pub.pem"])
def test_a_file_of_a_public_key_may_end_in_any_blank(signed, keys, tmp_path, name, end):
    (tmp_path / "key").write_bytes((keys / name).read_bytes().rstrip() + end)
    verify(signed, key=tmp_path / "key")


@pytest.mark.parametrize("gap", [b"", b"\n", b"a comment\n", b" " * (1 << 14)], ids=["", "blank", "comment", "far"])
@pytest.mark.parametrize("names", list(product(("own.pub", "own.pub.pem"), ("other.pub", "own.pub.pem"))))
def test_a_file_of_two_public_keys_is_not_read_as_the_first(signed, keys, tmp_path, names, gap):
    both = tmp_path / "both.pub"
    both.write_bytes(gap.join((keys / name).read_bytes() for name in names))
    with pytest.raises(ConfigError, match=r"both\.pub holds more than a key: give a file of one key alone$"):
        verify(signed, key=both)


@pytest.mark.parametrize("names", list(product(("own", "own.pem"), ("other", "own.pem", "other.pub"))))
def test_a_file_of_two_private_keys_signs_nothing(keys, tmp_path, names):
    both = tmp_path / "both"
    both.write_bytes(b"".join((keys / name).read_bytes() for name in names))
    with pytest.raises(ConfigError, match=r"both holds more than a key: give a file of one key alone$"):
        read_signing_key(both)
