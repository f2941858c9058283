"""Registries and a hub on this machine's loopback, as small as their protocols allow, and as hostile as a test wants them.

`asked` of a server is every request that came: (method, path, headers). What is in `rules` is asked first: a function of the
request that answers it itself and returns True, or leaves it to the server.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git(content):
    """What git calls a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Request(BaseHTTPRequestHandler):
    """One request; the server it came to says what becomes of it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        pass

    def take(self):
        server = self.server
        server.asked.append((self.command, self.path, dict(self.headers)))
        parts = urllib.parse.urlsplit(self.path)
        self.route, self.query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            if not any(rule(self) for rule in list(server.rules)):
                server.answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = take  # noqa: N815  as http.server calls them

    def body(self):
        """The content that is sent; less than all of it where the server breaks off."""
        left = int(self.headers.get("Content-Length") or 0)
        most = self.server.takes if self.server.takes is not None and left > self.server.takes else left
        content = self.rfile.read(most)
        if most < left:
            self.server.takes = None
        return content, most == left

    def reply(self, status, content=b"", gives=None, **headers):
        """An answer; its connection is cut after so many bytes of it."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:gives])
            if gives is not None and len(content) > gives:
                self.server.gives = None
                self.cut()
        return True

    def cut(self):
        """End the connection at once."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def part(self, content, **headers):
        """A content, or the part of it that is asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match or not self.server.has_parts:
            return self.reply(200, content, self.server.gives, **headers)
        start = int(match[1])
        if start >= len(content):
            return self.reply(416)
        said = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.reply(206, content[start:], self.server.gives, Content_Range=said, **headers)


class Server(ThreadingHTTPServer):
    """What both have: who was asked for what, and when a connection breaks."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.asked, self.rules = [], []
        self.gives = self.takes = None
        """After so many bytes of the next longer content the connection breaks, once."""
        self.has_parts = True
        self.host = f"127.0.0.1:{self.server_port}"

    def handle_error(self, request, address):
        pass

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()

    def asks(self, method, pattern):
        """The headers of the requests of a kind, in order."""
        return [headers for sent, path, headers in self.asked if sent == method and re.search(pattern, path)]


class Registry(Server):
    """An OCI registry: what `PUT` has brought, under the digest that it has."""

    def __init__(self, password=None):
        super().__init__()
        self.blobs, self.manifests, self.uploads = {}, {}, {}
        self.password = password

    def answer(self, request):
        match = re.fullmatch(
            r"/v2/(?P<name>[a-z0-9/._-]+)/(?P<what>manifests|blobs|blobs/uploads)/(?P<at>[^/]*)", request.route
        )
        if request.route == "/token":
            user = base64.b64decode(request.headers.get("Authorization", "Basic ")[6:]).decode()
            return request.reply(200, json.dumps({"token": "good" if user == self.password else "bad"}).encode())
        if self.password and request.headers.get("Authorization") != "Bearer good":
            realm = f'Bearer realm="http://{self.host}/token",service="here",scope="repository:x:pull"'
            return request.reply(401, WWW_Authenticate=realm)
        if not match:
            return request.reply(404)
        return getattr(self, f"_{match['what'].replace('/', '_')}")(request, match["name"], match["at"])

    def _manifests(self, request, name, at):
        if request.command == "PUT":
            content, _ = request.body()
            digest = f"sha256:{sha256(content)}"
            for version in (at, digest):
                self.manifests[name, version] = content, request.headers["Content-Type"]
            return request.reply(201, Docker_Content_Digest=digest)
        found = self.manifests.get((name, at))
        if not found:
            return request.reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
        return request.reply(200, found[0], Content_Type=found[1])

    def _blobs(self, request, name, at):
        if at not in self.blobs:
            return request.reply(404)
        return request.part(self.blobs[at])

    def _blobs_uploads(self, request, name, at):
        if request.command == "POST":
            at = f"{len(self.uploads)}"
            self.uploads[at] = b""
            return request.reply(202, **self._state(name, at))
        if request.command == "GET":
            return request.reply(204, **self._state(name, at))
        content, whole = request.body()
        self.uploads[at] += content
        if not whole:
            return request.cut()
        if request.command == "PATCH":
            return request.reply(202, **self._state(name, at))
        digest = request.query["digest"][0]
        if digest != f"sha256:{sha256(self.uploads[at])}":
            return request.reply(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
        self.blobs[digest] = self.uploads.pop(at)
        return request.reply(201)

    def _state(self, name, at):
        size = len(self.uploads[at])
        return {"Location": f"/v2/{name}/blobs/uploads/{at}?state=x", **({"Range": f"0-{size - 1}"} if size else {})}

    def layers(self, name, tag):
        """What the manifest says of the files."""
        return json.loads(self.manifests[name, tag][0])["layers"]

    def put(self, name, tag, layers, **more):
        """A manifest as somebody else writes it."""
        content = json.dumps({"schemaVersion": 2, "layers": layers, **more}).encode()
        self.manifests[name, tag] = content, "application/vnd.oci.image.manifest.v1+json"


class Hub(Server):
    """The hub's own interface over one repository: files of at most `small` bytes as git has them, others by LFS."""

    NAME = "someone/support"

    def __init__(self, small=1_000, token="hf_good"):
        super().__init__()
        self.files, self.commit, self.objects = {}, "0" * 40, {}
        self.small, self.token, self.made = small, token, []

    def answer(self, request):
        is_signed = request.route.startswith("/objects/")  # an address that was given out says itself who may
        if not is_signed and request.headers.get("Authorization") != f"Bearer {self.token}":
            return request.reply(401, b"who are you?")
        routes = {
            "/api/repos/create": self._create,
            "/api/validate-yaml": self._validated,
            f"/api/models/{self.NAME}(?:/revision/[^/]+)?": self._listed,
            f"/api/models/{self.NAME}/tree/main": self._tree,
            f"/api/models/{self.NAME}/preupload/main": self._preupload,
            f"/api/models/{self.NAME}/commit/main": self._commit,
            rf"/{self.NAME}\.git/info/lfs/objects/batch": self._batch,
            r"/objects/(\w+)": self._object,
            f"/{self.NAME}/resolve/{self.commit}/(.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, request.route):
                return answer(request, *match.groups())
        return request.reply(404, b"not here")

    def _said(self, request, value):
        return request.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def _create(self, request):
        self.made.append(json.loads(request.body()[0]))
        return self._said(request, {"url": f"http://{self.host}/{self.NAME}"})

    def _validated(self, request):
        request.body()
        return self._said(request, {"errors": [], "warnings": []})

    def _listed(self, request):
        siblings = [self.sibling(name, content) for name, content in self.files.items()]
        return self._said(request, {"id": self.NAME, "sha": self.commit, "siblings": siblings, "tags": []})

    def sibling(self, name, content):
        """What the hub says of a file."""
        lfs = (
            {"sha256": sha256(content), "size": len(content), "pointerSize": 130} if len(content) > self.small else None
        )
        return {"rfilename": name, "size": len(content), "blobId": git(content), **({"lfs": lfs} if lfs else {})}

    def _tree(self, request):
        files = self.files.items()
        return self._said(
            request,
            [{"type": "file", "path": name, "oid": git(content), "size": len(content)} for name, content in files],
        )

    def _preupload(self, request):
        asked = json.loads(request.body()[0])["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] > self.small else "regular", "shouldIgnore": False}
            for f in asked
        ]
        return self._said(request, {"files": modes})

    def _batch(self, request):
        asked = json.loads(request.body()[0])["objects"]
        there = [f for f in asked if f["oid"] in self.objects]
        objects = [
            f | ({} if f in there else {"actions": {"upload": {"href": f"http://{self.host}/objects/{f['oid']}"}}})
            for f in asked
        ]
        return self._said(request, {"transfer": "basic", "objects": objects})

    def _object(self, request, oid):
        if request.command == "GET":
            return request.part(self.objects[oid])
        content, _ = request.body()
        self.objects[oid] = content
        return request.reply(200)

    def _commit(self, request):
        for line in request.body()[0].splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif said["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            elif said["key"] == "deletedFile":
                del self.files[value["path"]]
        self.commit = sha256(repr(sorted(self.files.items())).encode())[:40]
        address = f"http://{self.host}/{self.NAME}/commit/{self.commit}"
        return self._said(request, {"success": True, "commitOid": self.commit, "commitUrl": address})

    def _resolve(self, request, name):
        return request.part(self.files[name]) if name in self.files else request.reply(404)
