"""A server from its start to its end: what is checked before it listens, and what is left whole when it is asked to stop."""

import contextlib
import dataclasses
import ipaddress
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from inlay.base.base import Base
from inlay.errors import ConfigError, OutputError, explain
from inlay.generation.engine import Engine
from inlay.http.access import Access
from inlay.http.gate import LOOPBACK, Gate, log
from inlay.http.paths import application
from inlay.http.service import Bounds, Service
from inlay.serve.registry import Registry
from inlay.serve.slots import Limits, Slots
from inlay.serve.worker import Worker

CACHE_TOKENS = 16_384
"""Tokens whose keys and values are held at a time, where nothing else is said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What a server is made of beside its base."""

    adapters: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Adapters that have to be there, by name."""
    directories: tuple[Path, ...] = ()
    """Folders whose folders are adapters, from which others can be loaded too."""
    cache_tokens: int = CACHE_TOKENS
    max_rows: int = 64
    limits: Limits = dataclasses.field(default_factory=Limits)
    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    access: Access = dataclasses.field(default_factory=Access)
    registry: Registry = dataclasses.field(default_factory=Registry)


def is_loopback(host: str) -> bool:
    """Only this machine can connect there."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_host(host: str, access: Access) -> None:
    """Refuse to be asked by other machines without a key.

    **Raises:**

    - `ConfigError`: it would be.
    """
    if access.is_open and not is_loopback(host):
        found, do = f"--host {host} without keys", "--api-keys FILE, or --host 127.0.0.1"
        raise ConfigError(explain("everybody who can connect could use this server", found=found, do=do))


@contextlib.contextmanager
def serving(base: Base, setup: Setup) -> Iterator[Service]:
    """A service over a base, for as long as the block: its worker runs, its adapters are registered.

    **Raises:**

    - `InlayError`: an adapter that has to be there can't be loaded, or the base can't be served.
    """
    engine = None
    _ = base.layout.unused  # found by a pass of the model, beside which there may be no other
    if base.spec.continues:
        base.check_causal()
        engine = Engine(base.model, base.router, cache_tokens=setup.cache_tokens, max_rows=setup.max_rows)
    worker = Worker(engine)
    slots = Slots(base, worker.between, setup.limits, setup.directories)
    worker.start()
    try:
        _register(slots, setup)
        service = Service(base, worker, slots, access=setup.access, registry=setup.registry, bounds=setup.bounds)
        yield service
        service.close()
    finally:
        worker.stop()
        slots.close()


def _register(slots: Slots, setup: Setup) -> None:
    """Adapters that are named are read once, so that what is wrong is said at the start; what else lies about may be wrong."""
    for name, directory in setup.adapters.items():
        slots.load(name, directory.resolve())
    kept = {name: (slots.allowed(e["directory"]), e["pinned"]) for name, e in setup.registry.entries.items()}
    found = {
        path.name: (path.resolve(), False)
        for folder in setup.directories
        for path in sorted(folder.iterdir())
        if path.is_dir()
    }
    for name, (directory, pinned) in {**found, **kept}.items():
        if name not in setup.adapters:
            try:
                slots.register(name, directory, pinned=pinned)
            except Exception as error:  # it is somebody's folder, and may hold anything
                log("left out", adapter=name, directory=str(directory), error=str(error))


class Server(uvicorn.Server):
    """Answers over HTTP until `stop` is called; what is under way then is answered first."""

    def __init__(self, app: Gate, host: str, port: int, drain_seconds: float = 30.0):
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "off"}
        quiet["timeout_graceful_shutdown"] = max(1, round(drain_seconds))
        super().__init__(uvicorn.Config(app, host=host, port=port, **quiet))
        self.listening = threading.Event()
        self.on_listening: Callable[[], None] = lambda: None
        """Called once it listens."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are answered by whoever runs the server."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """Listen.

        **Raises:**

        - `OutputError`: the address can't be listened on.
        """
        try:
            await super().startup(sockets)
        except SystemExit:
            found = f"{self.config.host}:{self.config.port}"
            raise OutputError(explain("this address can't be listened on", found=found, do="another --port")) from None
        self.listening.set()
        self.on_listening()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Take no more requests, answer what is under way, and end."""
        self.should_exit = True


def hosts(host: str, access: Access, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names by which a server may be asked; see `inlay.http.gate.Gate`."""
    return () if not access.is_open else (*LOOPBACK, host, *more)


def server(
    service: Service, host: str, port: int, *, more_hosts: tuple[str, ...] = (), drain_seconds: float = 30.0
) -> Server:
    """What answers requests to a service over HTTP.

    **Raises:**

    - `ConfigError`: see `check_host`.
    """
    check_host(host, service.access)
    return Server(application(service, hosts(host, service.access, more_hosts)), host, port, drain_seconds)
