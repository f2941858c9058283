"""Serve a base and its adapters to OpenAI's clients."""

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import Annotated, Any

from inlay import formats, http
from inlay.cli import answered_by
from inlay.errors import ConfigError, explain
from inlay.hub import store, trust
from inlay.options import purpose
from inlay.options.flags import OnBase, Signed, num_bytes
from inlay.options.types import Mark, repeated
from inlay.process import settled
from inlay.screen import emit, say, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve(OnBase, Signed):
    """A server on this machine, until Ctrl-C or SIGTERM, which let it answer what is under way."""

    adapters: Annotated[tuple[str, ...], Mark(metavar="NAME=DIR")] = ()
    """Adapters that answer under these names: directories, or name@version in the store. Unless given, a name is that of the
    directory, or what is before the @."""

    adapter_dir: repeated(Path) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """A folder of adapters, each of which answers under the name of its folder, and from which others are loaded while it
    serves; nothing is loaded from elsewhere. May be given several times."""

    registry: Path | None = None
    """A file that keeps the adapters that are loaded while it serves: one that was killed has them again."""

    host: str = "127.0.0.1"
    """The address to listen on; another than this machine's own needs --api-keys."""

    port: int = 8000
    """The port to listen on; 0 takes a free one."""

    allow_host: repeated(str) = ()  # type: ignore[valid-type]  # likewise
    """A name by which it may be asked where there are no keys, beside localhost: that of a proxy in front."""

    api_keys: Path | None = None
    """A JSON file of keys with the adapters that each may see; see docs/guides/serve.md."""

    cache_tokens: int | None = None
    """Tokens whose keys and values are held at a time, of all answers together; 16,384 unless given."""

    max_rows: int = 64
    """Answers that are computed in one step."""

    max_open: int = 256
    """Answers that are under way or wait; more are told to come again."""

    max_new_tokens: int = 4096
    """The longest answer that may be asked for, in tokens."""

    adapter_memory: Annotated[str, Mark(metavar="SIZE")] = "2GB"
    """Memory of the adapters that are loaded at a time; who was not asked for the longest makes room, and comes again."""

    max_r: int = 512
    """The largest rank of an adapter."""

    drain_seconds: float = 30.0
    """How long answers that are under way may take once it is to end."""

    task: purpose.TASK = None
    """What the base is loaded for; embedding serves vectors. The base's own files say it unless given."""

    def __post_init__(self) -> None:
        for name in ("cache_tokens", "max_rows", "max_open", "max_new_tokens", "max_r"):
            if (value := getattr(self, name)) is not None and value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(explain("a server has no room for anything", found=f"--{flag} {value}"))
        num_bytes("--adapter-memory", self.adapter_memory)

    def run(self) -> int:
        """Load, listen, answer."""
        http.check_parts()
        from inlay.http import access, gate, server

        keys = access.read(self.api_keys) if self.api_keys else access.Access()
        server.check_host(self.host, keys)
        setup = self._setup(keys)
        base = self.load(purpose.choose_alone(self.model, self.task, None))
        say("base", f"{base.describe()} · {base.fingerprint}")
        with gate.logged(), server.serving(base, setup) as service, settled():
            running = server.server(
                service, self.host, self.port, more_hosts=self.allow_host, drain_seconds=self.drain_seconds
            )
            with contextlib.ExitStack() as held:
                for number in (signal.SIGINT, signal.SIGTERM):
                    held.enter_context(answered_by(number, lambda *_: running.stop()))
                running.on_listening = lambda: self._say(service, running.port)
                running.run()
        return 0

    def _setup(self, keys: Any) -> Any:
        from inlay.http import server, service
        from inlay.serve import registry, slots

        return server.Setup(
            adapters=_named(self.adapters),
            directories=self.adapter_dir,
            cache_tokens=self.cache_tokens or server.CACHE_TOKENS,
            max_rows=self.max_rows,
            limits=slots.Limits(
                budget_bytes=num_bytes("--adapter-memory", self.adapter_memory),
                max_r=self.max_r,
                signed_by=self.require_signed_by,
            ),
            bounds=service.Bounds(max_open=self.max_open, max_new_tokens=self.max_new_tokens),
            access=keys,
            registry=registry.Registry(self.registry),
        )

    def _say(self, service: Any, port: int) -> None:
        loaded = size(service.slots.num_bytes)
        say("adapters", f"{len(service.slots):,} · {loaded} loaded, {self.adapter_memory} at most")
        address = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}/"
        say("serves", f"{address}v1 · a page for a browser: {address}")
        if self.json:
            emit({"port": port, "adapters": service.slots.names(), "base_fingerprint": service.base_digest})


def _named(adapters: tuple[str, ...]) -> dict[str, Path]:
    """Directories by the names that they are given.

    **Raises:**

    - `ConfigError`: a name is given twice, or none to a digest.
    """
    found: dict[str, Path] = {}
    for text in adapters:
        name, has_name, path = text.partition("=")
        given = Path(path := path if has_name else text).expanduser()
        kept = formats.fetched(given) if store.find(given) or given.is_file() else None
        if kept is None and (stored := store.object_of(given)):
            trust.check_stored(stored)
        if not has_name:
            name = path.partition("@")[0] if store.find(given) else (kept or given).resolve().name
        if kept and name.startswith(store.DIGEST_PREFIX):
            wrong, do = "an adapter that is given by its digest needs a name", f"--adapters NAME={path}"
            raise ConfigError(explain(wrong, found=text, do=do))
        if name in found:
            says, do = f"{name}: {found[name]} and {kept or given}", f"--adapters other={path}"
            raise ConfigError(explain("two adapters can't have one name", found=says, do=do))
        found[name] = kept or given
    return found


Command = Serve
