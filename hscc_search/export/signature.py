"""The signature of an exported folder by an Ed25519 key, as ``ssh-keygen -Y`` writes and checks it.

The format is SSHSIG of OpenSSH's ``PROTOCOL.sshsig``: fields with their lengths before them, in base64 between two
lines. What is signed is the manifest, and with it every other file; and a purpose, so that no signature of something
else fits. Of the key the file holds its public half alone: no path, and not its comment, which usually names somebody.
"""

import base64
import hashlib
import importlib.util
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hscc_search.errors import ConfigError, ExportError
from hscc_search.export.manifest import refusing
from hscc_search.export.run import MANIFEST, MOST_MANIFEST, SIGNATURE, regular
from hscc_search.files import IrregularFileError, read_up_to

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PURPOSE = "hscc-search"
_KIND, _MAGIC, _VERSION = b"ssh-ed25519", b"SSHSIG", struct.pack(">I", 1)
_FIRST, _LAST = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
# How the first and the last line of a block of PEM begin.
_BEGIN, _END = b"-----BEGIN ", b"-----END "
# Characters of a line; bytes of a signature and of a key, which have a few hundred.
_WIDTH, _MOST_BYTES = 70, 1 << 14
_REMEDY = "give the file of one key, as ssh-keygen -t ed25519 -f KEY writes it"


def read_signing_key(path: Path) -> "Ed25519PrivateKey":
    """Read a private key in the format of OpenSSH or PEM, before any work.

    Raises:
        ConfigError: cryptography is not installed, or the file holds no Ed25519 key without a password.
    """
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    try:
        key = _read(path, (partial(load_ssh_private_key, password=None), partial(load_pem_private_key, password=None)))
    except TypeError as error:
        raise ConfigError(
            f"key {path} has a password, and none is asked for: export without it, and then ssh-keygen -Y sign -f KEY "
            f"-n {PURPOSE} DIR/{MANIFEST} asks for it and writes the same signature"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no private Ed25519 key: ssh-keygen -t ed25519 -f KEY makes one")
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """Read a public key in the format of OpenSSH, a line, or PEM.

    Raises:
        ConfigError: cryptography is not installed, or the file holds no such key.
    """
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    key = _read(path, (load_ssh_public_key, load_pem_public_key))
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} holds no public Ed25519 key: ssh-keygen -t ed25519 -f KEY writes it to KEY.pub")
    return key


def fingerprint(key: "Ed25519PublicKey") -> str:
    """The name of a key, as ``ssh-keygen -l`` gives it."""
    return _fingerprint(_blob(key))


def sign(folder: Path, key: "Ed25519PrivateKey") -> None:
    """Write the signature of a folder's manifest beside it."""
    signed = key.sign(_signed((folder / MANIFEST).read_bytes(), b"sha512"))
    fields = _packed(_blob(key.public_key()), PURPOSE.encode(), b"", b"sha512", _packed(_KIND, signed))
    text = base64.b64encode(_MAGIC + _VERSION + fields).decode()
    lines = [text[start : start + _WIDTH] for start in range(0, len(text), _WIDTH)]
    (folder / SIGNATURE).write_text("\n".join((_FIRST, *lines, _LAST, "")), encoding="ascii")


def check_signature(folder: Path, key: "Ed25519PublicKey") -> None:
    """Check that a folder's manifest was signed with a key.

    Raises:
        ExportError: there is no signature, it is damaged, of another key or made for something else, or the manifest
            was changed after it.
    """
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE
    if not os.path.lexists(path):
        raise ExportError(f"{folder} is not signed: it has no {SIGNATURE}")
    with refusing():
        content = regular(path, _MOST_BYTES).read_bytes()
        manifest = regular(folder / MANIFEST, MOST_MANIFEST).read_bytes()
    try:
        owner, purpose, _, hashed, signature = _unarmoured(content)
        kind, signed = _unpacked(signature, 2)
    except (ValueError, struct.error) as error:
        raise ExportError(f"{path} is damaged: it is no signature as ssh-keygen -Y sign writes it") from error
    if owner != _blob(key):
        raise ExportError(f"{path} is of another key: of {_fingerprint(owner)}, not of {fingerprint(key)}")
    if purpose != PURPOSE.encode():
        raise ExportError(f"{path} was made for something else: ssh-keygen -Y sign needs -n {PURPOSE}")
    if hashed not in (b"sha512", b"sha256") or kind != _KIND:
        raise ExportError(f"{path} is damaged: it is no signature as ssh-keygen -Y sign writes it")
    try:
        key.verify(signed, _signed(manifest, hashed))
    except InvalidSignature as error:
        raise ExportError(
            f"{folder / MANIFEST} is not what was signed, or {path} was changed: do not use this folder"
        ) from error


def _check_installed() -> None:
    """Check that keys can be read.

    Raises:
        ConfigError: cryptography is not installed.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError("signatures need the package cryptography: pip install 'hscc-search[sign]'")


def _read(path: Path, readers: Sequence[Callable[[bytes], Any]]) -> Any:
    """What the first of some readers makes of a file that takes it; None where none does.

    Raises:
        ConfigError: the file cannot be read, or holds more than a key.
        TypeError: a private key has a password.
    """
    try:
        content = read_up_to(path, _MOST_BYTES)
    except IrregularFileError as error:
        raise ConfigError(f"key {path} is no regular file: {_REMEDY}") from error
    except OSError as error:
        raise ConfigError(f"cannot read key {path}: {error.strerror}: {_REMEDY}") from error
    for read in readers:
        try:
            key = read(content)
        except TypeError:
            raise
        except Exception:  # cryptography's errors have no class in common, and what they say may quote the key
            continue
        if not _is_one(content):  # of several keys each reader takes the first
            raise ConfigError(f"{path} holds more than a key: give a file of one key alone")
        return key
    return None


def _is_one(content: bytes) -> bool:
    """Tell whether a file is one line, or one block of PEM, and nothing else."""
    text = content.strip()
    if len(content) > _MOST_BYTES:
        return False
    if not text.startswith(_BEGIN):
        return len(text.splitlines()) == 1
    last = text.partition(_END)[2]
    return text.count(_BEGIN) == 1 and len(last.splitlines()) == 1 and last.endswith(b"-----")


def _signed(manifest: bytes, hashed: bytes) -> bytes:
    """What a key signs: the purpose and the digest of the manifest."""
    digest = hashlib.new(hashed.decode("ascii"), manifest).digest()
    return _MAGIC + _packed(PURPOSE.encode(), b"", hashed, digest)


def _blob(key: "Ed25519PublicKey") -> bytes:
    return _packed(_KIND, key.public_bytes_raw())


def _fingerprint(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _packed(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def _unpacked(content: bytes, count: int) -> list[bytes]:
    """Undo :func:`_packed`.

    Raises:
        ValueError, struct.error: it holds more, or less.
    """
    fields = []
    for _ in range(count):
        (size,) = struct.unpack_from(">I", content)
        fields.append(content[4 : 4 + size])
        if len(fields[-1]) != size:
            raise ValueError("a field ends early")
        content = content[4 + size :]
    if content:
        raise ValueError("there is more behind")
    return fields


def _unarmoured(content: bytes) -> list[bytes]:
    """The fields of a signature file: public key, purpose, nothing, name of the digest, signature.

    Raises:
        ValueError, struct.error: it is none.
    """
    armoured, start = content.strip(), _MAGIC + _VERSION
    if not (armoured.startswith(_FIRST.encode()) and armoured.endswith(_LAST.encode())):
        raise ValueError("it has no such lines around it")
    blob = base64.b64decode(b"".join(armoured[len(_FIRST) : -len(_LAST)].split()), validate=True)
    if not blob.startswith(start):
        raise ValueError("it is of another version")
    return _unpacked(blob.removeprefix(start), 5)
