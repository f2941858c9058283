"""How long an adapter takes to sign and to verify: python -m benchmarks.share [BYTES]

A directory of one file of 50 MB of noise and two small ones is signed and verified ten times, after once that is not counted,
which imports what signs; beside it stands the SHA-256 of the file alone. Printed are medians.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from inlay.hub import sign

TIMES = 10


def main(num_bytes: int = 50_000_000) -> None:
    """Make a key and a directory, sign, verify, print."""
    with tempfile.TemporaryDirectory() as folder:
        place, private, public = Path(folder) / "adapter", Path(folder) / "key.pem", Path(folder) / "key.pub"
        place.mkdir()
        (place / "adapter_model.safetensors").write_bytes(os.urandom(num_bytes))
        for name in ("adapter_config.json", "inlay.json"):
            (place / name).write_text("{}")
        key = ec.generate_private_key(ec.SECP256R1())
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        print(f"sign    {_seconds(lambda: sign.sign(place, private)):.3f} s")
        print(f"verify  {_seconds(lambda: sign.required(place, [public], 'it')):.3f} s")
        weights = place / "adapter_model.safetensors"
        print(f"sha256  {_seconds(lambda: hashlib.sha256(weights.read_bytes())):.3f} s, alone")


def _seconds(work: Callable[[], object]) -> float:
    work()
    found = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
