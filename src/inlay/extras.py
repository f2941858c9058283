"""Packages that only some work needs: each belongs to an extra, and one that is missing names it."""

import importlib

from inlay.errors import MissingExtraError, explain

EXTRAS = {
    "OpenSSL": "share",
    "datasets": "train",
    "fastapi": "serve",
    "gguf": "gguf",
    "llguidance": "serve",
    "matplotlib": "train",
    "model_signing": "share",
    "oras": "share",
    "pandas": "train",
    "prometheus_client": "serve",
    "pyarrow": "train",
    "rouge_score": "eval",
    "sacrebleu": "eval",
    "uvicorn": "serve",
}
"""What is imported, by the extra that brings it (pandas and pyarrow come with datasets; model_signing imports
OpenSSL without asking for it)."""


def need(name: str, purpose: str) -> None:
    """Import the package `name`, one of `EXTRAS`, for `purpose`, such as 'BLEU'.

    **Raises:**

    - `MissingExtraError`: it is not installed.
    """
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and lacks something itself
            raise
        raise MissingExtraError(
            explain(f"{name} is not installed", found=f"{purpose} needs it", do=f'pip install "inlay[{EXTRAS[name]}]"')
        ) from None
