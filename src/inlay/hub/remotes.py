"""Where adapters are shared: an address, `oci://...` or `hf://...`, as what can be asked of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, explain
from inlay.hub import huggingface, oci
from inlay.hub.store import DIGEST_PREFIX, Store, check_name

Remote = oci.Registry | huggingface.Repository
"""What a listing is asked of, and what files are pushed to."""

_OPENED: dict[str, Callable[[str], Remote]] = {
    "oci": lambda text: oci.Registry(oci.parse(text)),
    "hf": lambda text: huggingface.Repository(huggingface.parse(text)),
}


def opened(address: str) -> Remote:
    """What an address names; nothing is asked of it yet.

    **Raises:**

    - `ConfigError`: it is no address.
    """
    scheme, between, _ = address.partition("://")
    if not between or scheme not in _OPENED:
        wrong, do = "this is no address of a registry or of the hub", "oci://HOST/NAME:TAG, or hf://OWNER/NAME"
        raise ConfigError(explain(wrong, found=repr(address), do=do))
    return _OPENED[scheme](address)


def local_name(reference: Any, tag: str | None) -> str:
    """What an adapter that is pulled is called in the store: `tag`, or the last part of its name with its version.

    **Raises:**

    - `ConfigError`: that can't be a name there.
    """
    if tag is None and reference.version.startswith(DIGEST_PREFIX):
        wrong, do = "an adapter that is pulled by its digest needs a name", "--tag name@version"
        raise ConfigError(explain(wrong, found=str(reference), do=do))
    name = tag or f"{reference.name.rpartition('/')[2]}@{reference.version}".lower()
    try:
        check_name(name)
    except ConfigError as error:
        if tag is not None:
            raise
        raise ConfigError(explain(error.wrong, found=error.found, do="--tag name@version")) from None
    return name


def incoming(held: Store) -> Path:
    """Where what comes for a store lies until it is whole."""
    return held.root / "incoming"
