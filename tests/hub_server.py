"""A stand-in for the Hugging Face Hub that can be written to: accounts, repositories, branches, uploads, commits.

It speaks the calls of huggingface_hub: POST /api/repos/create, preupload, Git LFS' batch and its uploads, and a commit
as lines of JSON; and it serves what was committed. Datasets lie beside models, as `datasets/user/name`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, hf_api
from huggingface_hub.utils.sha import git_hash

from tests.serving import Page, Site, serving

Files = dict[str, bytes]
_DATASETS = "datasets/"
_NAME = f"(?:{_DATASETS})?[^/]+/[^/]+?"
TOKENS = {"hf_write": "user", "hf_read": "reader"}
"""Token -> the account; a reader's may write nowhere."""


@dataclass
class Repo:
    """A repository: whether it is private, and the files of its branches; pull requests are branches, too."""

    private: bool = False
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the server holds, and what it was told; `token` logs another account in, `fails` are requests it refuses."""

    site: Site
    token: Callable[[str], None]
    repos: dict[str, Repo] = field(default_factory=dict)
    uploads: Files = field(default_factory=dict)
    fails: dict[str, Page] = field(default_factory=dict)

    def put(self, repo: str, files: Files, private: bool = False) -> None:
        """A repository that is there before."""
        self.repos[repo] = Repo(private, {"main": files})

    def files(self, repo: str, branch: str = "main") -> Files:
        """What lies on a branch."""
        return self.repos[repo].branches[branch]

    def written(self) -> list[str]:
        """The paths that were written to."""
        return [path for method, path, _ in self.site.asked if method in ("POST", "PUT")]

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Page | None:
        """To one request."""
        parts = urlsplit(path)
        for pattern, page in self.fails.items():
            if re.search(pattern, f"{method} {path}"):
                return page
        if parts.path == "/":
            return Page(b"")
        account = TOKENS.get(headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None and "Authorization" in headers:
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return _json({"error": message["X-Error-Message"]}, 401, message)
        if match := re.fullmatch(r"/lfs/(\w+)", parts.path):
            self.uploads[match[1]] = body
            return _json({}) if hashlib.sha256(body).hexdigest() == match[1] else Page(status=400)
        if parts.path == "/api/whoami-v2":
            return _json({"name": account, "type": "user"}) if account else Page(status=401)
        content = json.loads(body) if body[:1] == b"{" and not parts.path.count("/commit/") else {}
        if parts.path == "/api/validate-yaml":
            return _validated(content["content"])
        if parts.path == "/api/repos/create":
            return self._create(account, content)
        if match := re.fullmatch(rf"/api/(?:models/)?({_NAME})(?:/([\w-]+)/([^/]+))?", parts.path):
            rest = match[2] or "revision", unquote(match[3] or "main")
            return self._of_repo(method, account, match[1], *rest, content, body, "create_pr" in parse_qs(parts.query))
        if match := re.fullmatch(rf"/{_NAME}\.git/info/lfs/objects/batch", parts.path):
            return _json({"transfer": "basic", "objects": [self._to_upload(known) for known in content["objects"]]})
        if match := re.fullmatch(rf"/({_NAME})/resolve/([^/]+)/(.+)", parts.path):
            return self._file(account, match[1], unquote(match[2]), unquote(match[3]))
        return None

    def _create(self, account: str | None, content: dict[str, Any]) -> Page:
        owner = content.get("organization") or account
        full = f"{owner}/{content['name']}"
        name = f"datasets/{full}" if content.get("type") == "dataset" else full
        if name in self.repos:
            return _json({"error": "You already created this model repo"}, 409)
        if account == "reader" or owner != account:
            return _json({"error": f"You don't have the rights to create a model under the namespace {owner!r}"}, 403)
        self.repos[name] = Repo(content.get("visibility") == "private")
        return _json({"url": f"{self.site.address}/{name}", "name": full})

    def _of_repo(
        self, method: str, account: str | None, name: str, what: str, branch: str, content: Any, body: bytes, pr: bool
    ) -> Page:
        repo, owner = self.repos.get(name), name.removeprefix(_DATASETS).partition("/")[0]
        if repo is None or (repo.private and account != owner):
            return _json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        if method == "POST" and what != "paths-info" and account != owner:
            return _json({"error": "You don't have write access"}, 403)
        if what == "branch":
            repo.branches[branch] = dict(repo.branches["main"])
            return _json({})
        if branch not in repo.branches:
            return _json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repo.branches[branch]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return _json(
                {"id": name.removeprefix(_DATASETS), "sha": _sha(files), "private": repo.private, "siblings": siblings}
            )
        if what == "tree":
            return _json([_described(path, data) for path, data in files.items()])
        if what == "paths-info":
            asked = parse_qs(body.decode())["paths"]
            return _json([_described(path, files[path]) for path in asked if path in files])
        if what == "preupload":
            return _json({"files": [_mode(known, files) for known in content["files"]]})
        assert what == "commit", what
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit", _sha(files)) != _sha(files):
            return _json({"error": "A commit has happened since. Please refresh and try again."}, 412)
        if pr:
            files = repo.branches[f"refs/pr/{len(repo.branches)}"] = dict(files)
        return _json(self._commit(name, repo, files, lines, pr))

    def _commit(self, name: str, repo: Repo, files: Files, lines: list[dict[str, Any]], pr: bool) -> dict[str, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.uploads[value["oid"]]
        address = f"{self.site.address}/{name}"
        number = len(repo.branches) - 1
        request = f"{address}/discussions/{number}" if pr else None
        return {"commitUrl": f"{address}/commit/{_sha(files)}", "commitOid": _sha(files), "pullRequestUrl": request}

    def _to_upload(self, known: dict[str, Any]) -> dict[str, Any]:
        if known["oid"] in self.uploads:
            return known
        return {**known, "actions": {"upload": {"href": f"{self.site.address}/lfs/{known['oid']}"}}}

    def _file(self, account: str | None, name: str, branch: str, path: str) -> Page:
        repo, owner = self.repos.get(name), name.removeprefix(_DATASETS).partition("/")[0]
        if repo is None or (repo.private and account != owner):
            return Page(status=401, headers={"X-Error-Code": "RepoNotFound"})
        known = {**repo.branches, **{_sha(files): files for files in repo.branches.values()}}
        files = known.get(branch, {})
        commit = {"X-Repo-Commit": _sha(files)}
        if path not in files:
            return Page(status=404, headers={**commit, "X-Error-Code": "EntryNotFound"})
        return Page(files[path], headers=commit)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Page:
    body = json.dumps(content).encode()
    return Page(body, status, {"Content-Type": "application/json", **(headers or {})}, validated=False)


def _sha(files: Files) -> str:
    """A commit's name, from its content."""
    return hashlib.sha1(b"".join(path.encode() + data for path, data in sorted(files.items()))).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png", ".parquet"))


def _described(path: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "oid": git_hash(data), "size": len(data)}
    if _is_large(path):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
    return found


def _mode(known: dict[str, Any], files: Files) -> dict[str, Any]:
    mode = "lfs" if _is_large(known["path"]) else "regular"
    return {"path": known["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _validated(text: str) -> Page:
    """The rules of the Hub that a card can break: front matter is a mapping, and some keys are of a kind."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    front = yaml.safe_load(match[1]) if match else None
    kinds = {"tags": list, "widget": list, "model-index": list, "license": str, "instance_prompt": str}
    wrong = [key for key, kind in kinds.items() if key in (front or {}) and not isinstance(front[key], kind)]
    if not isinstance(front, dict) or wrong:
        return _json({"errors": [{"message": f"{wrong or 'front matter'} is not valid"}], "warnings": []}, 400)
    return _json({"errors": [], "warnings": []})


@contextmanager
def running_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, to which huggingface_hub speaks in this process; with an empty cache, and the account `user`."""
    with serving() as site:
        hub = Hub(site, lambda token: monkeypatch.setenv("HF_TOKEN", token))
        site.program = hub.answer
        template = f"{site.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": site.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_TOKEN_PATH": str(cache / "token"),
            "HF_HUB_DISABLE_XET": True,  # its server is another, which nobody else speaks
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", site.address)  # of functions that PEFT and diffusers call
        hub.token("hf_write")
        yield hub
