"""The interface of OpenAI over HTTP: who may ask, what they may say, and how they are answered."""

from inlay import extras

PARTS = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
"""What a server is made of that the extra `serve` brings."""


def check_parts() -> None:
    """Look whether all of it is installed.

    **Raises:**

    - `MissingExtraError`: it is not.
    """
    for name in PARTS:
        extras.need(name, "a server")
