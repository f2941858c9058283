"""Signatures of adapters: who has the private half of a key says that these are the files.

    model.sig    beside the files: a list of their names and SHA-256, and an ECDSA signature of it

as the `model-signing` package writes it, of the Open Source Security Foundation: its own command verifies what is signed here,
and what it signs with a key is verified here. What is looked at is what the store keeps: every file that is not hidden, and no
fewer, whatever a signature asks to be left out. Keys are on the curves P-256, P-384 and P-521, as PEM; a key is known by the
SHA-256 of its public half.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inlay import extras
from inlay.errors import ConfigError, FormatError, TrustError, UnknownNameError, explain
from inlay.hub import files
from inlay.io import json_files, output

SIGNATURE = "model.sig"
"""The file beside the others that signs them."""

PASSWORD = "INLAY_KEY_PASSWORD"
"""The variable that opens a key which has a password."""

MAX_KEY_BYTES = 100_000


class Signer(NamedTuple):
    """Who signed an adapter."""

    key: str
    """The SHA-256 of the public key, in hexadecimal."""
    path: Path | None
    """The file of that key, which was asked for; None where nobody has it, so that nothing was verified."""


def sign(directory: Path, key: Path) -> Signer:
    """Sign the files of a directory, in the place of an earlier signature.

    **Raises:**

    - `ConfigError`: there is no such key, it is none that signs, or its password is another.
    - `FormatError`: the directory is none of files alone.
    - `OutputError`: it can't be written to.
    """
    _need()
    from model_signing import signing

    password = os.environ.get(PASSWORD)
    with _about_key(key, "a private key"):
        _read_key(key)
        made: Any = signing.Config()
        made.use_elliptic_key_signer(
            private_key=key, password=password and password.encode()
        )  # the library takes bytes
    with tempfile.TemporaryDirectory() as beside, output.refusals(directory):
        made.set_hashing_config(_listed()).sign(directory, Path(beside) / SIGNATURE)
        output.write_file(directory / SIGNATURE, (Path(beside) / SIGNATURE).read_bytes())
    signer = signer_of(directory)
    assert signer is not None, "it has just been written"
    return signer._replace(path=key)


def signer_of(directory: Path) -> Signer | None:
    """Whose key a signature says it is of, which proves nothing; None where there is no signature.

    **Raises:**

    - `FormatError`: it is none of a key.
    """
    if not (directory / SIGNATURE).is_file():
        return None
    said: Any = json_files.read_json(directory / SIGNATURE).get("verificationMaterial")
    public = said.get("publicKey") if isinstance(said, dict) else None
    hint = public.get("hint") if isinstance(public, dict) else None
    if not isinstance(hint, str) or len(hint) != 64:
        found, do = str(directory / SIGNATURE), "inlay sign ADAPTER --key KEY.pem"
        raise FormatError(explain("this is no signature by a key", found=found, do=do))
    return Signer(hint, None)


def verify(directory: Path, keys: Sequence[Path]) -> Signer | None:
    """Who of those who have these keys signed the files of a directory; one without a path where a signature is of nobody among
    them; None where there is none.

    **Arguments:**

    - `keys`: public keys, as PEM.

    **Raises:**

    - `TrustError`: the signature says that it is of one of these keys and is not, or is of other files.
    - `FormatError`: it is no signature.
    - `ConfigError`: a key is none.
    """
    signer = signer_of(directory)
    known = {key_id(key): key for key in keys} if signer else {}
    if signer is None or signer.key not in known:
        return signer
    from model_signing import verifying

    checked = verifying.Config().use_elliptic_key_verifier(public_key=known[signer.key]).set_hashing_config(_listed())
    try:
        checked.verify(directory, directory / SIGNATURE)
    except Exception as error:  # the library raises what its parts do, on bytes that somebody else wrote
        said = re.sub(r": Expected 'Digest.*?\)', Actual 'Digest.*?\)'", "", " ".join(str(error).split()))
        what = said[:300] or f"{type(error).__name__}: the signature is not of that key"
        wrong, do = "the signature is not of these files", "fetch the adapter again; if it stays so, ask who signed it"
        raise TrustError(explain(wrong, found=f"{directory}: {what}", do=do)) from None
    return Signer(signer.key, known[signer.key])


def required(directory: Path, keys: Sequence[Path], name: str) -> Signer:
    """Who of those who have these keys signed it.

    **Raises:** what `verify` does; `TrustError`: none of them did.
    """
    signer = verify(directory, keys)
    if signer is None or signer.path is None:
        by = "there is no signature" if signer is None else f"it is signed by another key, sha256 {signer.key}"
        wanted = ", ".join(map(str, keys)) or "nobody"
        wrong, do = (
            f"{name} is not signed by who is trusted",
            "ask its author, or for their key: --require-signed-by KEY.pub",
        )
        raise TrustError(explain(wrong, found=[by, f"trusted: {wanted}"], do=do))
    return signer


def key_id(key: Path) -> str:
    """By what a public key is known.

    **Raises:**

    - `ConfigError`: there is no such key, or it is none that verifies.
    """
    _need()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    with _about_key(key, "a public key"):
        public = serialization.load_pem_public_key(_read_key(key))
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise _no_key(key, "a public key", "a key of another kind")
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(public.public_bytes(serialization.Encoding.PEM, form)).hexdigest()


def _listed() -> Any:
    """What `model_signing` takes for the files of a directory: those that the store keeps, but for the signature."""
    from model_signing import hashing

    class Listed(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            names = [name for name in files.listed(Path(model_path)) if name != SIGNATURE]
            return super().hash(model_path, files_to_hash=[Path(model_path) / name for name in names])

        def add_ignored_paths(self, *, model_path: Any, paths: Any) -> None:
            """A signature has no say in what is looked at."""

    # links that lead out are refused by `files.listed`; the rest are those of the hub's cache
    return Listed().set_ignored_paths(paths=[SIGNATURE]).set_allow_symlinks(True)


def _need() -> None:
    for name in ("OpenSSL", "model_signing"):
        extras.need(name, "a signature")


def _read_key(key: Path) -> bytes:
    try:
        return json_files.read_bytes(key, MAX_KEY_BYTES)
    except OSError as error:
        found, do = f"{key}: {error.strerror}", "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        raise UnknownNameError(explain("there is no such key", found=found, do=do)) from None


@contextlib.contextmanager
def _about_key(key: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, (ConfigError, FormatError)):
            raise
        raise _no_key(key, what, " ".join(str(error).split())[:200]) from None


def _no_key(key: Path, what: str, found: str) -> ConfigError:
    do = f"a PEM file of a key on P-256, P-384 or P-521; {PASSWORD}=... opens one with a password"
    return ConfigError(explain(f"this is not {what} that can be used here", found=f"{key}: {found}", do=do))
