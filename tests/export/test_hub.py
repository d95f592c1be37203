"""Upload to the Hugging Face Hub and load from it, with a local server that implements this part of its protocol.

As on the Hub, weights are uploaded by Git LFS and other files within the commit. Xet, which huggingface_hub prefers if
hf_xet is installed, is not implemented.
"""

import base64
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse

import jax
import numpy as np
import pytest
from helpers.models import make_model
from helpers.runs import call, free_port, run, run_together

from diffusion_distillation.errors import InputError
from diffusion_distillation.export import card, hub, sampler_file
from diffusion_distillation.interop import archive
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.runtime.files import as_path

TOKEN = "hf_of_the_stand_in"


def is_large(name):
    return name.endswith(".safetensors")


class Hub(http.server.BaseHTTPRequestHandler):
    """Model repositories: a dict of files for each commit."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(403, {"error": "this token may not write"})
        path = urllib.parse.unquote(self.path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.private[name] = asked.get("private", asked.get("visibility") == "private")
            self.server.repos.setdefault(name, {"main": {}})
            return self.answer(200, {"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False}
                for name in (file["path"] for file in json.loads(body)["files"])
            ]
            return self.answer(200, {"files": files})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self.server.address}/large/{asked['oid']}"}}}
                for asked in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            large = [line["value"] for line in lines if line["key"] == "lfsFile"]
            files |= {value["path"]: self.server.large[value["oid"]] for value in large}
            commit = hashlib.sha1(body).hexdigest()
            commits = self.server.repos[found[1]]
            commits[commit] = commits["main"] = {**commits["main"], **files}
            url = f"{self.server.address}/{found[1]}/commit/{commit}"
            return self.answer(200, {"commitUrl": url, "commitOid": commit})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            paths = urllib.parse.parse_qs(body.decode())["paths"]
            return self.answer(200, [file for file in self.tree(found[1], found[2]) if file["path"] in paths])
        return self.answer(404, {"error": path})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        return self.answer(200, {})

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.gets.append(path)
        if found := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/revision/([^/]+))?", path):
            revision = found[2] or "main"
            if revision not in self.server.repos.get(found[1], {}):
                return self.missing("RevisionNotFound" if found[1] in self.server.repos else "RepoNotFound")
            return self.answer(200, {"id": found[1], "sha": revision, "siblings": [], "tags": [], "private": False})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(/.*)?", path):
            return self.answer(200, self.tree(found[1], found[2]))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.server.repos.get(found[1], {}).get(found[2], {}).get(found[3])
            return self.missing("EntryNotFound") if content is None else self.file(content)
        return self.answer(404, {"error": path})

    def do_HEAD(self):
        self.do_GET()

    def tree(self, name, revision):
        files = self.server.repos[name][revision]
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]

    def file(self, content):
        status, headers = 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
            content = content[int(first) : end]
        return self.answer(status, content, headers)

    def missing(self, code):
        return self.answer(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self, status, content, headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def stand_in():
    with http.server.ThreadingHTTPServer(("localhost", 0), Hub) as server:
        server.address = f"http://localhost:{server.server_port}"
        server.repos, server.private, server.large, server.gets = {}, {}, {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an exported model, and the images of seed 5."""
    folder = tmp_path_factory.mktemp("exported") / "digits"
    params, metadata = make_model(num_classes=1, unet=True)
    sampler_file.write(as_path(folder), params, metadata, "archive")
    return folder, Pipeline(params, metadata).sample(jax.random.key(5), 8)


def test_an_exported_model_is_uploaded_and_loaded(stand_in, exported, tmp_path):
    folder, images = exported
    env = {
        "HF_ENDPOINT": stand_in.address,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "DIFFUSION_DISTILLATION_CACHE": str(tmp_path / "cache"),
    }
    (folder / ".notes").touch()  # hidden files are not uploaded
    push = ["push_to_hub", f"--folder={folder}", "--repo=user/digits"]

    def sample(url):
        return ["sample", f"--checkpoint={url}", f"--out={tmp_path}/i.npz", "--num_samples=8", "--seed=5"]

    def assert_drawn():
        with np.load(tmp_path / "i.npz") as drawn:
            np.testing.assert_array_equal(drawn["images"], images)
        (tmp_path / "i.npz").unlink()

    printed = run_together([[*push, "--private"], sample("hf://user/digits")], env=env)
    assert_drawn()
    assert f"{stand_in.address}/user/digits" in printed and stand_in.private == {"user/digits": True}
    [commit] = set(stand_in.repos["user/digits"]) - {"main"}
    files = stand_in.repos["user/digits"][commit]
    assert set(files) == {archive.WEIGHTS, archive.CONFIG, card.NAME}
    assert all(content == (folder / name).read_bytes() for name, content in files.items())
    assert list(stand_in.large.values()) == [files[archive.WEIGHTS]]

    printed = run_together([sample(f"hf://user/digits@{commit}"), sample("hf://user/faces")], env=env, fails=True)
    assert "hf://user/faces: there is nothing at this URL" in printed
    assert_drawn()
    assert not any(card.NAME in path for path in stand_in.gets)
    printed = run(*push, env={**env, "HF_TOKEN": "hf_other"}, fails=True)
    assert printed.splitlines()[-1].startswith("error: The Hub does not let this token write to 'user/digits' (403)")
    env["HF_ENDPOINT"] = f"http://localhost:{free_port()}"
    printed = run(*push, env=env, fails=True)
    assert printed.splitlines()[-1].startswith("error: The Hub cannot be reached: Connect")


def test_a_wrong_upload_is_an_error_before_anything_is_sent(exported, tmp_path, monkeypatch):
    folder, _ = exported
    assert "is not a folder. Pass a folder that" in call(
        "push_to_hub", f"--folder={tmp_path}/none", "--repo=user/name", fails=True
    )
    with pytest.raises(InputError, match=r"has no README\.md"):
        hub.push(as_path(tmp_path), "user/name")
    for repo in ("name", "user/name/more", "user/", "us er/name"):
        with pytest.raises(InputError, match="must be user/name or organization/name"):
            hub.push(as_path(folder), repo)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match=r"There is no token .* Run `hf auth login`, or set HF_TOKEN"):
        hub.push(as_path(folder), "user/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        hub.push(as_path(folder), "user/name")
