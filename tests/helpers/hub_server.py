"""A hub on loopback: answers what huggingface_hub asks to list, read and upload repositories."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".tar", ".safetensors", ".png")
"""Endings of files that are uploaded by themselves, before the commit that names them (LFS)."""


class Hub:
    """Data sets and models by name, each a mapping from paths to bytes.

    Attributes:
        token: Who sends it may read and write; others may read if `token` is "".
        theirs: Names that somebody else's account has: they may be read.
        faults: Statuses of the next answers, in place of right ones.
        asked: Method and path of every request.
        cut: Files are sent up to their 100th byte.
        room: How many more uploads arrive; the connection of those after them breaks off.
        lost: Of requests whose path holds a text: which one, counted from 1, is refused.
        uploaded: Contents by SHA-256 that a commit may name.
    """

    def __init__(self):
        self.sets: dict[str, dict[str, bytes]] = {}
        self.models: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict] = {}
        self.token = ""
        self.theirs: set[str] = set()
        self.faults: list[int] = []
        self.asked: list[str] = []
        self.cut = False
        self.room = 1_000
        self.lost: dict[str, int] = {}
        self.uploaded: dict[str, bytes] = {}
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                hub.asked.append(f"{self.command} {self.path}")
                if self.path.startswith("/upload/") and not hub.take_room():
                    self.rfile.read(size // 2)
                    self.close_connection = True
                    return
                hub.answer(self, self.rfile.read(size))

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def send(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[:100] if hub.cut and "/resolve/" in self.path else body)
                    self.close_connection = hub.cut

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take_room(self):
        """Whether one more upload arrives."""
        with self._lock:
            self.room -= 1
            return self.room >= 0

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request, body):
        """Send what the Hub would."""
        path = request.path.partition("?")[0]
        if self.faults and not path.startswith(("/api/agent", "/api/validate", "/api/telemetry")):
            request.send(self.faults.pop(0))
            return
        for text in self.lost:
            if text in request.path:
                self.lost[text] -= 1
                if self.lost[text] == 0:
                    request.send(403)
                    return
        # an address for an upload is itself the permission
        if self.token and not path.startswith("/upload/"):
            given = request.headers.get("Authorization")
            if given != f"Bearer {self.token}":
                known = path == "/api/repos/create" or given is not None
                _refuse(request, 401, "" if known else "RepoNotFound", "Invalid credentials")
                return
        for pattern, method in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/upload/(?P<oid>.*)", self._receive),
        ):
            if match := re.fullmatch(pattern, path):
                method(request, body, **match.groupdict())
                return
        for pattern, method in (
            (r"/api/KIND/NAME(?:/revision/REVISION)?", self._describe),
            (r"/api/KIND/NAME/tree/REVISION/?(?P<folder>.*)", self._list),
            (r"/PREFIXNAME/resolve/REVISION/(?P<path>.*)", self._read),
            (r"/api/KIND/NAME/preupload/main", self._plan),
            (r"/PREFIXNAME\.git/info/lfs/objects/batch", self._batch),
            (r"/api/KIND/NAME/commit/main", self._commit),
        ):
            for kind, prefix, repos in (
                ("datasets", "datasets/", self.sets),
                ("models", "", self.models),
            ):
                full = pattern.replace("KIND", kind).replace("PREFIX", prefix)
                full = full.replace("NAME", "(?P<name>[^/]+/[^/]+)")
                match = re.fullmatch(full.replace("REVISION", "(?P<revision>[^/]+)"), path)
                if match is None or match["name"] not in repos:
                    continue
                named = match.groupdict()
                revision = named.pop("revision", None) or "main"
                if revision not in ("main", _commit_of(repos[match["name"]])):
                    _refuse(request, 404, "RevisionNotFound", "Invalid rev id")
                    return
                method(request, body, repos, **named)
                return
        _refuse(request, 404, "RepoNotFound", "Repository not found")

    def _json(self, request, value):
        request.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _describe(self, request, body, repos, name):
        private = self.created.get(name, {}).get("visibility") == "private"
        about = {"id": name, "sha": _commit_of(repos[name]), "siblings": [], "private": private}
        self._json(request, about)

    def _list(self, request, body, repos, name, folder):
        prefix = f"{folder}/" if folder else ""
        inside = {path: data for path, data in repos[name].items() if path.startswith(prefix)}
        found, folders = [], set()
        for path, data in inside.items():
            first, _, rest = path.removeprefix(prefix).partition("/")
            if rest:
                folders.add(prefix + first)
            if not rest or "recursive=true" in request.path.lower():
                entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
                if path.endswith(LARGE):
                    sha = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
                found.append(entry)
        found += [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
        if found or not folder:
            self._json(request, found)
        else:
            _refuse(request, 404, "EntryNotFound", "Entry not found")

    def _read(self, request, body, repos, name, path):
        data = repos[name].get(path)
        if data is None:
            _refuse(request, 404, "EntryNotFound", "Entry not found")
            return
        request.send(200, data, X_Repo_Commit=_commit_of(repos[name]), ETag=f'"{_blob(data)}"')

    def _create(self, request, body):
        given = json.loads(body)
        name, dataset = f"{given['organization']}/{given['name']}", given.get("type") == "dataset"
        repos, prefix = (self.sets, "datasets/") if dataset else (self.models, "")
        url = {"url": f"{self.url}/{prefix}{name}"}
        if name in self.theirs:
            _refuse(request, 403, "", "You don't have the rights to create a repository")
        elif name in repos:
            request.send(409, json.dumps(url).encode())
        else:
            repos[name], self.created[name] = {}, given
            self._json(request, url)

    def _validate(self, request, body):
        self._json(request, {"errors": [], "warnings": []})

    def _plan(self, request, body, repos, name):
        if name in self.theirs:
            _refuse(request, 403, "", "Authorization error")
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json(request, {"files": files})

    def _batch(self, request, body, repos, name):
        objects = []
        for entry in json.loads(body)["objects"]:
            known = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.uploaded:
                known["actions"] = {"upload": {"href": f"{self.url}/upload/{entry['oid']}"}}
            objects.append(known)
        self._json(request, {"transfer": "basic", "objects": objects})

    def _receive(self, request, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.uploaded[oid] = body
        request.send(200)

    def _commit(self, request, body, repos, name):
        files = repos[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.uploaded[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = _commit_of(files)
        url = f"{self.url}/{'datasets/' if repos is self.sets else ''}{name}/commit/{commit}"
        self._json(request, {"success": True, "commitUrl": url, "commitOid": commit})


def _refuse(request, status, code, message):
    request.send(status, **({"X_Error_Code": code} if code else {}), X_Error_Message=message)


def _blob(data):
    """Git's identity of a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _commit_of(files):
    """A commit's identity: another one for other files."""
    listed = sorted((path, _blob(data)) for path, data in files.items())
    return hashlib.sha1(json.dumps(listed).encode()).hexdigest()
