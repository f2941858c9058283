"""Many adapters on one base, over HTTP: adapters that come and go, a thread that answers, and the interface of OpenAI."""

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
