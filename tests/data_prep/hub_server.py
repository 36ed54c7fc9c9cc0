"""A hub of data sets on loopback: answers what huggingface_hub asks to list, read and upload."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Data sets by name, each a mapping from paths to bytes.

    Attributes:
        token: Who sends it may read and write; others may read if `token` is "".
        faults: Statuses of the next answers, in place of right ones.
        asked: Method and path of every request.
        cut: Files are sent up to their 100th byte.
    """

    def __init__(self):
        self.sets: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict] = {}
        self.token = ""
        self.faults: list[int] = []
        self.asked: list[str] = []
        self.cut = False
        self.lost: dict[str, int] = {}
        """Of requests whose path holds a text: which one, counted from 1, is refused."""
        self.uploaded: dict[str, bytes] = {}
        """Contents by SHA-256 that a commit may name."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                size = int(self.headers.get("Content-Length") or 0)
                hub.asked.append(f"{self.command} {self.path}")
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

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request, body):
        """Send what the Hub would."""
        if self.faults and "datasets" in request.path:  # not what the library asks for itself
            request.send(self.faults.pop(0))
            return
        for text in self.lost:
            if text in request.path:
                self.lost[text] -= 1
                if self.lost[text] == 0:
                    request.send(403)
                    return
        known = request.headers.get("Authorization") == f"Bearer {self.token}"
        # an address for an upload is itself the permission
        if self.token and not known and not request.path.startswith("/upload/"):
            request.send(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return
        path = request.path.partition("?")[0]
        for pattern, method in (
            (r"/api/datasets/([^/]+/[^/]+)(?:/revision/main)?", self._describe),
            (r"/api/datasets/([^/]+/[^/]+)/tree/main/?(.*)", self._list),
            (r"/datasets/([^/]+/[^/]+)/resolve/main/(.*)", self._read),
            (r"/api/repos/create()", self._create),
            (r"/api/validate-yaml()", self._validate),
            (r"/api/datasets/([^/]+/[^/]+)/preupload/main", self._plan),
            (r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/upload/(.*)", self._receive),
            (r"/api/datasets/([^/]+/[^/]+)/commit/main", self._commit),
        ):
            if match := re.fullmatch(pattern, path):
                if path.startswith(("/api/datasets", "/datasets")) and match[1] not in self.sets:
                    break
                method(request, body, *match.groups())
                return
        request.send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def _json(self, request, value):
        request.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _describe(self, request, body, name):
        private = self.created.get(name, {}).get("visibility") == "private"
        self._json(request, {"id": name, "sha": COMMIT, "siblings": [], "private": private})

    def _list(self, request, body, name, folder):
        prefix = f"{folder}/" if folder else ""
        found = [
            {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
            for path, data in self.sets[name].items()
            if path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        ]
        folders = {
            prefix + path.removeprefix(prefix).partition("/")[0]
            for path in self.sets[name]
            if path.startswith(prefix) and "/" in path.removeprefix(prefix)
        }
        found += [{"type": "directory", "path": path, "oid": COMMIT} for path in sorted(folders)]
        if found:
            self._json(request, found)
        else:
            request.send(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")

    def _read(self, request, body, name, path):
        data = self.sets[name].get(path)
        if data is None:
            request.send(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            return
        request.send(200, data, X_Repo_Commit=COMMIT, ETag=f'"{_blob(data)}"')

    def _create(self, request, body, _):
        given = json.loads(body)
        name = f"{given['organization']}/{given['name']}"
        if name in self.sets:
            request.send(409, json.dumps({"url": f"{self.url}/datasets/{name}"}).encode())
            return
        self.sets[name], self.created[name] = {}, given
        self._json(request, {"url": f"{self.url}/datasets/{name}"})

    def _validate(self, request, body, _):
        self._json(request, {"errors": [], "warnings": []})

    def _plan(self, request, body, name):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".tar") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json(request, {"files": files})

    def _batch(self, request, body, name):
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

    def _commit(self, request, body, name):
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.sets[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.sets[name][value["path"]] = self.uploaded[value["oid"]]
        url = f"{self.url}/datasets/{name}/commit/{COMMIT}"
        self._json(request, {"success": True, "commitUrl": url, "commitOid": COMMIT})


def _blob(data):
    """Git's identity of a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
