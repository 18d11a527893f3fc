"""A hub at the boundary of HTTP: folders in place of repositories, and a list of what was asked for."""

import json
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs

import datasets
import huggingface_hub
import pytest
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

httpx = sys.modules[type(huggingface_hub.get_session()).__module__.partition(".")[0]]
"""What the hub's client is made of: httpx, or httpx2, by version."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories are `<root>/datasets/<owner>/<name>` and `<root>/<owner>/<name>`.

    Attributes:
        files: repository and file of each download, in order.
        requests: how many there were, of any kind.
        cut: whether the network is gone.
    """

    def __init__(self, root: Path):
        self.root, self.files, self.requests, self.cut = root, list[str](), 0, False

    def answer(self, request):
        """The hub's answer to a request."""
        self.requests += 1
        if self.cut:
            raise httpx.ConnectError("no network")
        words = request.url.path.strip("/").split("/")
        if words[0] == "api":
            return self.describe(request, words[1:])
        words = words[words[0] == "datasets" :]
        kind = "datasets/" if request.url.path.startswith("/datasets/") else ""
        repo, file = f"{kind}{words[0]}/{words[1]}", "/".join(words[4:])
        path = self.root / repo / file
        if words[2] != "resolve" or not path.is_file():
            return httpx.Response(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if request.method == "GET":
            self.files.append(f"{repo}/{file}")
        content = path.read_bytes()
        headers = {"ETag": f'"{abs(hash(content)):x}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
        return httpx.Response(200, headers=headers, content=content if request.method == "GET" else b"")

    def go_offline(self, monkeypatch):
        """As HF_HUB_OFFLINE=1 does, and whatever asks for something all the same is counted."""
        self.cut, self.requests = True, 0
        for module in (constants, datasets.config):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)

    def describe(self, request, words):
        """What the API says of a repository: itself, some of its files, or all in a folder."""
        if words[0] not in ("datasets", "models") or len(words) < 3:
            return httpx.Response(404)
        repo = self.root / ("datasets" if words[0] == "datasets" else "") / words[1] / words[2]
        if not repo.is_dir():
            return httpx.Response(404, headers={"X-Error-Code": "RepoNotFound"})
        files = sorted(path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file())
        entries = [
            {"type": "file", "path": file, "size": (repo / file).stat().st_size, "oid": COMMIT} for file in files
        ]
        folders = {folder.as_posix() for file in files for folder in PurePosixPath(file).parents} - {"."}
        entries += [{"type": "directory", "path": folder, "oid": COMMIT} for folder in sorted(folders)]
        if "tree" in words:
            here = "/".join(words[words.index("tree") + 2 :])
            inside = [entry for entry in entries if entry["path"].startswith(here and here + "/")]
            if request.url.params.get("recursive", "").lower() != "true":
                inside = [entry for entry in inside if "/" not in entry["path"][len(here) :].strip("/")]
            return httpx.Response(200, json=inside)
        if "paths-info" in words:
            body = request.content.decode()
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return httpx.Response(200, json=[entry for entry in entries if entry["path"] in asked])
        about = {"id": f"{words[1]}/{words[2]}", "sha": COMMIT, "private": False, "gated": False, "disabled": False}
        about |= {"tags": [], "downloads": 0, "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z"}
        return httpx.Response(200, json=about | {"siblings": [{"rfilename": file} for file in files]})


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """The fake hub in place of the real one, with caches of its own."""
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between tries
    for module, names in (
        (constants, {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub_cache")}),
        (datasets.config, {"HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": str(tmp_path / "cache")}),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))
    HfFileSystem.clear_instance_cache()
    hooks = {"request": [hf_request_event_hook]}  # which keeps to HF_HUB_OFFLINE
    options = {"transport": httpx.MockTransport(hub.answer), "event_hooks": hooks, "follow_redirects": True}
    huggingface_hub.set_client_factory(lambda: httpx.Client(**options))
    yield hub
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(default_client_factory)
    HfFileSystem.clear_instance_cache()
