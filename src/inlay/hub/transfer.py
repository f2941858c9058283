"""Files over HTTP from those who may lie: bounded, resumed, digested.

    STORE/incoming/KEY/DIGEST       what has come of a file so far; it stays when the transfer breaks, and the next one goes on
    STORE/incoming/KEY/files/NAME   the files under their names, once every one of them is what its digest says

Neither `oras` nor `huggingface_hub` bounds what a server sends, or digests it, and `oras` begins anew where a transfer broke:
so both transports fetch through this one. An answer is read as it is sent, never unpacked, and no byte beyond the size that was
said is kept. A redirect is followed by hand: over TLS, unless the server itself is this machine, and without what authorizes.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from inlay import extras
from inlay.errors import FormatError, InlayError, OutputError, TransferError, UnknownNameError, explain
from inlay.hub import files
from inlay.hub.manifest import Entry
from inlay.io import output

MAX_REDIRECTS, TRIES = 5, 5
"""As often is an answer elsewhere, and as often a broken transfer taken up, unless some of it came."""

PAUSE_SECONDS = 0.2
"""How much longer each time nothing came."""

TIMEOUT_SECONDS = (10, 60)
"""How long a connection, and how long the next bytes of an answer, may take."""

MAX_ANSWER_BYTES = 4_000_000
"""Longest answer that is read whole: a manifest, a list of files, a token."""

_NOT_TO_YOU = "this registry refuses it to you"
_WITHOUT_TLS = "nothing is asked without TLS, but this machine itself"
"""What goes wrong in the same way however often it is tried."""

_CHUNK_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_REDIRECTS = (301, 302, 303, 307, 308)

Headers = Mapping[str, str]

Progress = Callable[[int, int | None], None]
"""Hears how many bytes are there, of how many."""


def unheard(done: int, total: int | None) -> None:
    """Nobody hears it."""


def is_loopback(host: str) -> bool:
    """It is this machine, which may be spoken to without TLS."""
    return host in _LOOPBACK


class Channel:
    """A server, and what it is asked with.

    **Arguments:**

    - `address`: where it is: scheme, host, port.
    - `headers`: what is sent to it, and to nobody else.
    - `renewed`: asked where it answers 401: whether it should be asked again, with what `headers` says then.
    - `session`: a session of `requests` that others use too; what they ask is guarded likewise.
    """

    def __init__(
        self,
        address: str,
        headers: Callable[[], Headers] = dict,
        renewed: Callable[[Any], bool] = lambda answer: False,
        session: Any = None,
    ):
        extras.need("oras", "sharing adapters")
        import requests

        self.address, self._headers, self._renewed = address, headers, renewed
        self._is_plain = urlsplit(address).scheme == "http"
        self.session = session or requests.Session()
        self.session.auth = lambda request: request  # no password out of .netrc
        self.session.headers["Accept-Encoding"] = "identity"
        self.session.hooks["response"] = [_bounded]
        self._send, self.session.send = self.session.send, self._checked

    def ask(
        self, method: str, url: str, *, headers: Headers | None = None, body: Callable[[], Any] = lambda: None
    ) -> Any:
        """The answer to a request, of which nothing has been read but the head; close it.

        **Arguments:**

        - `body`: what makes the content that is sent, each time that it is sent.

        **Raises:**

        - `TransferError`: nobody answers, or the answer is elsewhere, where it is not looked for.
        """
        url, may_renew = urljoin(self.address, url), True
        for _ in range(MAX_REDIRECTS + 2):
            is_own = urlsplit(url)[:2] == urlsplit(self.address)[:2]
            sent = {**(headers or {}), **(self._headers() if is_own else {})}
            with self._speaking():
                answer = self.session.request(
                    method, url, headers=sent, data=body(), stream=True, allow_redirects=False
                )
                again = answer.status_code == 401 and is_own and may_renew and self._renewed(answer)
            if not again and not (answer.status_code in _REDIRECTS and method in ("GET", "HEAD")):
                return answer
            may_renew = may_renew and not again
            url = url if again else place_of(answer)
            answer.close()
        raise TransferError(explain("this registry sends from one address to the next", found=url))

    def read(self, url: str, headers: Headers | None = None) -> bytes:
        """A short answer.

        **Raises:**

        - `UnknownNameError`: there is nothing of that name.
        - `TransferError`: see `ask`; or it refuses.
        - `FormatError`: the answer is not short.
        """
        with contextlib.closing(self.ask("GET", url, headers=headers)) as answer:
            self.expect(answer, 200)
            with self._speaking():
                return _short(answer)

    def expect(self, answer: Any, *statuses: int) -> None:
        """Refuse an answer that is none of these.

        **Raises:**

        - `UnknownNameError`: there is nothing of that name.
        - `TransferError`: it says something else.
        """
        status = answer.status_code
        if status in statuses:
            return
        with contextlib.closing(answer), self._speaking():
            body = answer.raw.read(500).decode("utf-8", "replace")
        found = f"{answer.request.method} {answer.url}: {status} {' '.join(body.split())}".strip()
        if status == 404:
            raise UnknownNameError(explain("there is nothing of that name", found=found, do="check the name"))
        who = status in (401, 403)
        do = "docker login HOST, or hf auth login, with an account that may" if who else "try again later"
        raise TransferError(explain(_NOT_TO_YOU if who else "this registry refuses", found=found, do=do))

    def fetch(self, entry: Entry, path: Path) -> None:
        """The content of a file at `path`, or what is missing of it.

        **Raises:**

        - `TransferError`: the transfer broke too often, or is refused; what came stays.
        - `FormatError`: the content is another one, or longer; it is removed.
        """
        failed, have, last = 0, -1, TransferError("")
        while True:
            before, have = have, path.stat().st_size if path.exists() else 0
            failed = failed + 1 if have <= before else 0
            if have == entry.size and path.exists():
                break
            if have > entry.size:  # of another file that claims the same digest
                path.unlink()
            if failed > TRIES:
                wrong, do = f"{entry.name} did not come whole", "the same command goes on where this one ended"
                found = [f"{have:,} of {entry.size:,} bytes from {self.address}", *last.found]
                raise TransferError(explain(wrong, found=found, do="; ".join(filter(None, [do, last.hint]))))
            time.sleep(PAUSE_SECONDS * failed)
            try:
                self._go_on(entry, path, min(have, entry.size) if path.exists() else 0)
            except TransferError as error:
                if error.wrong in (_NOT_TO_YOU, _WITHOUT_TLS):
                    raise
                last = error
        if not is_content(path, entry.digest):
            path.unlink()
            wrong, do = "what came is not what was said to be there", "try again; if it stays so, ask who keeps it"
            raise FormatError(explain(wrong, found=f"{entry.name}: not {entry.digest}, from {self.address}", do=do))

    def _go_on(self, entry: Entry, path: Path, have: int) -> None:
        """Append what comes of a file from byte `have` on; a server that has no parts sends all of it."""
        asked = {"Range": f"bytes={have}-"} if have else None
        with contextlib.closing(self.ask("GET", entry.url, headers=asked)) as answer:
            is_rest = answer.headers.get("Content-Range", "") == f"bytes {have}-{entry.size - 1}/{entry.size}"
            if have and answer.status_code in (206, 416) and not is_rest:  # it has no such part: anew
                path.unlink()
                return
            self.expect(answer, *((200, 206) if have else (200,)))
            goes_on = answer.status_code == 206
            left = entry.size - (have if goes_on else 0)
            with output.refusals(path), path.open("ab" if goes_on else "wb") as file, self._speaking():
                while chunk := answer.raw.read(min(_CHUNK_BYTES, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        path.unlink()
                        raise _longer(entry.name, entry.size)
                    file.write(chunk)

    def _checked(self, request: Any, **given: Any) -> Any:
        """Send a request, unless others could listen; what `oras` asks by itself comes by here too."""
        parts = urlsplit(request.url)
        is_here = parts.scheme == "http" and self._is_plain and is_loopback(parts.hostname or "")
        if parts.scheme != "https" and not is_here:
            do = "an address that begins with https://"
            raise TransferError(explain(_WITHOUT_TLS, found=f"{request.method} {request.url}", do=do))
        return self._send(request, **{**given, "timeout": given.get("timeout") or TIMEOUT_SECONDS})

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Within the block what goes wrong between here and the server is said so."""
        import requests
        import urllib3

        try:
            yield
        except InlayError:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # of addresses, the last
            reason = " ".join(str(error).split())[:200]
            wrong, do = "this registry does not answer", "check its address and the connection, and try again"
            raise TransferError(explain(wrong, found=f"{self.address}: {reason}", do=do)) from None


def place_of(answer: Any) -> str:
    """Where an answer says that something is.

    **Raises:**

    - `TransferError`: that is no address.
    """
    said = answer.headers.get("Location", "")
    try:
        return urljoin(answer.url, said)
    except ValueError:
        found = f"{answer.url}: {said[:200]}"
        raise TransferError(explain("this registry leads to what is no address", found=found)) from None


def _bounded(answer: Any, **given: Any) -> None:
    """An answer that `oras` reads whole, for a token, is short as well."""
    if not given.get("stream"):
        answer._content, answer._content_consumed = _short(answer), True  # where requests keeps what it has read


def _short(answer: Any) -> bytes:
    content = answer.raw.read(MAX_ANSWER_BYTES + 1)
    if len(content) > MAX_ANSWER_BYTES:
        raise _longer(answer.url, MAX_ANSWER_BYTES)
    return content


def is_content(path: Path, digest: str) -> bool:
    """The digest is that of the file."""
    kind, _, value = digest.partition(":")
    if kind == "sha256":
        return files.digests(path.parent, [path.name])[path.name] == value
    sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha1.update(chunk)
    return sha1.hexdigest() == value


@contextlib.contextmanager
def fetched(
    channel: Channel,
    entries: Sequence[Entry],
    incoming: Path,
    progress: Progress = unheard,
) -> Iterator[Path]:
    """A directory with these files for as long as the block; what came of them stays if the transfer breaks.

    **Arguments:**

    - `incoming`: a directory of these files alone, which need not exist.

    **Raises:** what `Channel.fetch` does; `OutputError`: the disk has no room for them.
    """
    total = sum(entry.size for entry in entries)
    with _alone(incoming):
        output.check_space(incoming / "files", 3 * total)  # twice here, and in the store
        done = 0
        for entry in sorted(entries, key=lambda entry: entry.size):  # what says what it is comes before its weights
            progress(done, total)
            channel.fetch(entry, incoming / entry.digest.partition(":")[2])
            done += entry.size
        progress(total, total)
        place = incoming / "files"
        shutil.rmtree(place, ignore_errors=True)
        for entry in entries:
            (place / entry.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(incoming / entry.digest.partition(":")[2], place / entry.name)
        yield place
        shutil.rmtree(incoming)


def sweep(incoming: Path) -> None:
    """Remove what broken transfers have left, but for those that go on now."""
    with contextlib.suppress(FileNotFoundError):
        for place in list(incoming.iterdir()):
            with contextlib.suppress(OutputError), output.locked(place) as handle:
                if _is_at(handle, place):
                    shutil.rmtree(place)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Within the block no other process works in a directory, which is made."""
    with contextlib.ExitStack() as held:
        while True:
            with output.refusals(place):
                place.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                waiting = "waiting for another process that fetches the same"
                if _is_at(held.enter_context(output.locked(place, waiting=waiting)), place):
                    break
            held.close()  # it was removed by the one that was waited for, and a lock on what is gone keeps nobody out
        yield


def _is_at(handle: int | None, place: Path) -> bool:
    """What is open is what lies there."""
    return handle is None or (place.exists() and os.path.samestat(os.fstat(handle), place.stat()))


def _longer(what: str, size: int) -> FormatError:
    found = f"{what}: more than {size:,} bytes"
    return FormatError(explain("this registry sends more than it said", found=found, do="ask who keeps it"))
