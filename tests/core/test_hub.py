"""Adapters on the hub: pushed and read again through a local stand-in of the hub's HTTP calls."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from src.config import LoraConfig, ModelConfig
from src.core import hub
from src.gating.domain_gate import GATE_FILE, DomainGate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import WEIGHTS_FILE, adapter_state_dict, base_fingerprint, load_adapter, save_adapter
from src.lora.injection import inject_adapters
from src.models.checkpoint import load_trained, saved_gate
from src.models.sam2.build import build_model
from tests.errors import refuses

constants = pytest.importorskip("huggingface_hub.constants")
REVISION = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\ntags: [mope]\nmodel-index: [{name: a, results: []}]\n---\n# An adapter\n"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as is asked: repositories, the check of a card, commits of files, files."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_known":
            return self.answer(401, {"error": "Invalid username or password."})
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            self.server.private = given.get("private") or given.get("visibility") == "private"
            url = f"http://{self.headers['Host']}/{given['organization']}/{given['name']}"
            return self.answer(200, {"url": url})
        if self.path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            errors = [] if isinstance(head, dict) else [{"message": "no head"}]
            return self.answer(200, {"errors": errors, "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):  # a commit
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(
            200,
            {
                "commitUrl": f"http://{self.headers['Host']}/someone/cells/commit/{REVISION}",
                "commitOid": REVISION,
                "success": True,
            },
        )

    def do_GET(self) -> None:
        name, path = re.fullmatch(r"/(?:api/models/)?(\w+/\w+)(.*)", self.path).groups()
        if name != "someone/cells":
            return self.answer(404, {"error": "Repository not found"}, ("X-Error-Code", "RepoNotFound"))
        if path.startswith("/resolve/"):
            return self.answer(200, self.server.files[path.split("/", 3)[3]])
        if path.startswith("/tree/"):
            return self.answer(200, [self.entry(*item) for item in self.server.files.items()])
        files = [{"rfilename": file} for file in self.server.files]
        return self.answer(200, {"id": name, "sha": REVISION, "siblings": files})

    do_HEAD = do_GET

    def entry(self, path: str, content: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer(self, status: int, content: object, *headers: tuple[str, str]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        etag = ("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        for header in (*headers, etag, ("X-Repo-Commit", REVISION), ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[ThreadingHTTPServer]:
    """The stand-in, which huggingface_hub asks in place of the hub, with an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked, server.private = {}, [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    hub._fetch.cache_clear()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def base() -> ModelConfig:
    return ModelConfig(checkpoint="checkpoints/sam2_nano.safetensors", image_size=64)


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """An adapter folder with a card and a domain gate, and a file that is no part of it."""
    folder, lora = tmp_path / "adapter", LoraConfig(experts=2, rank=1)
    model = build_model(base)
    inject_adapters(model, lora)
    for _, layer in iter_adapter_layers(model):
        torch.nn.init.normal_(layer.lora_B)
    save_adapter(model, folder, lora, {})
    DomainGate(base_fingerprint(model)).save(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "secret.txt").write_text("not for others")
    return folder


def test_what_is_pushed_is_read_by_its_name(server, adapter, base, run_script):
    status, said, errors = run_script("push", adapter, "someone/cells", "--private")
    assert (errors, status) == ("", 0)
    assert "pushed: http" in said
    assert "someone/cells" in said
    assert server.private
    assert "/api/validate-yaml" in server.asked
    assert server.files.keys() == {"README.md", "adapter_config.json", WEIGHTS_FILE, GATE_FILE}

    here, there = build_model(base), build_model(base)
    load_adapter(here, adapter)
    load_adapter(there, "someone/cells")
    expected = adapter_state_dict(here)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter_state_dict(there).items())
    assert saved_gate(there, "someone/cells") is not None
    again = build_model(base)
    load_trained(again, "someone/cells")
    assert adapter_state_dict(again).keys() == expected.keys()


@pytest.mark.parametrize(
    ("prepare", "code", "words"),
    [
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"cut"), "adapter.damaged", "damaged"),
        (lambda folder: (folder / "README.md").write_text("---\n- a\n---\n"), "hub.card", "README.md"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "hub.card", "README.md"),
    ],
)
def test_a_damaged_folder_is_not_pushed(server, adapter, run_script, prepare, code, words):
    prepare(adapter)
    status, _, errors = run_script("push", adapter, "someone/cells", "--debug")
    assert status == 2
    assert f"[{code}]" in errors
    assert words in errors
    assert not server.asked


def test_who_is_not_logged_in_is_told_how(server, adapter, run_script, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    status, _, errors = run_script("push", adapter, "someone/cells")
    assert status == 2
    assert errors.startswith("error: someone/cells: the hub does not take it: ")
    assert errors.endswith("; log in with: hf auth login\n")
    assert run_script("push", adapter, "cells")[2] == "error: cells: a repository of the hub is called user/name\n"
    assert run_script("push", adapter / "none", "a/b")[0] == 2


def test_names_that_the_hub_does_not_have(server, base):
    with refuses("hub.not-found"):
        load_adapter(build_model(base), "someone/else")
    server.shutdown()
    server.server_close()
    hub._fetch.cache_clear()
    with refuses("hub.unreachable"):
        hub.find_folder("someone/cells")


def test_paths_are_not_asked_of_the_hub(server, tmp_path):
    (tmp_path / "runs").mkdir()
    for path in ("runs/none", "a/b/c", "adapter", "../x", "checkpoints/best.pt", str(tmp_path / "none")):
        assert hub.find_folder(path) == Path(path)
    assert not server.asked
