"""Keys for tests: P-256 unless another curve is asked for."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


def pair(place, name, curve=None, password=None):
    """(the file of a new private key, that of its public half), in a directory."""
    key = rsa.generate_private_key(65537, 2048) if curve == "rsa" else ec.generate_private_key(curve or ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    private, public = place / f"{name}.pem", place / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, info))
    return private, public
