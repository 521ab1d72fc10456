"""checkpoints/download_ckpts.sh against stand-ins of its two sources: it goes on, checks, and says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = bytes(range(256)) * 64
FILES = {"config.json": b'{"model_type": "sam3_video"}', "LICENSE": b"SAM License", "model.safetensors": WEIGHTS}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as the script asks for: the list of files for all, files for those who may have them."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path.rpartition("/")[2])
        if self.path == "/api/models/facebook/sam3/tree/main":
            return self.answer(200, json.dumps(self.listed()).encode())
        status = {None: 401, "Bearer stranger": 403}.get(self.headers["Authorization"], 200)
        content = FILES.get(self.path.removeprefix("/facebook/sam3/resolve/main/"), b"") if status == 200 else b""
        asked_range = self.headers["Range"]
        if status == 200 and asked_range:
            first = int(asked_range.removeprefix("bytes=").rstrip("-"))
            span = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[first:], ("Content-Range", span))
        return self.answer(status, content)

    def answer(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def listed(self) -> list[dict]:
        git = {name: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() for name, content in FILES.items()}
        files = [{"type": "file", "path": name, "oid": oid} for name, oid in git.items()]
        files[-1]["lfs"] = {"oid": hashlib.sha256(WEIGHTS).hexdigest()}
        left_out = [{"type": "file", "path": "sam3.pt", "oid": ""}, {"type": "directory", "path": "docs", "oid": ""}]
        return [*files, *left_out]

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the script stands, and fetches to."""
    shutil.copy(ROOT / "checkpoints/download_ckpts.sh", tmp_path)
    return tmp_path


Download = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def download(folder: Path, hub: ThreadingHTTPServer) -> Download:
    """Run the script: ``download("sam3", token="…")``."""

    def run(*models: str, token: str = "", url: str = "") -> subprocess.CompletedProcess:
        places = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}/", "SAM2_CHECKPOINT_URL": url, "HF_TOKEN": token}
        environment = {**os.environ, "HF_HOME": str(folder / "nobody"), "no_proxy": "127.0.0.1", **places}
        command = ["bash", str(folder / "download_ckpts.sh"), *models]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    return run


class TestSam3:
    def test_the_folder_is_fetched_and_the_licence_is_stated(self, download, folder, hub):
        done = download("sam3", token="mine")
        assert done.returncode == 0, done.stderr
        assert "SAM License" in done.stdout and "derivative" in done.stdout
        assert {path.name: path.read_bytes() for path in (folder / "sam3").iterdir()} == FILES
        assert hub.asked.count("model.safetensors") == 1
        assert download("sam3", token="mine").returncode == 0
        assert hub.asked.count("model.safetensors") == 1, "what is whole is not fetched again"

    def test_it_goes_on_with_a_part(self, download, folder, hub):
        (folder / "sam3").mkdir()
        (folder / "sam3/model.safetensors.part").write_bytes(WEIGHTS[:1000])
        assert download("sam3", token="mine").returncode == 0
        assert (folder / "sam3/model.safetensors").read_bytes() == WEIGHTS

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_file_that_differs_from_the_hubs_checksum_is_put_aside(self, download, folder, name):
        (folder / "sam3").mkdir()
        (folder / "sam3" / name).write_bytes(FILES[name][::-1])
        done = download("sam3", token="mine")
        assert done.returncode == 1
        assert f"error: sam3/{name} is damaged" in done.stderr
        assert not (folder / "sam3" / name).exists()

    def test_a_token_that_was_stored_is_used(self, download, folder):
        (folder / "nobody").mkdir()
        (folder / "nobody/token").write_text("mine\n")
        assert download("sam3").returncode == 0

    @pytest.mark.parametrize(("token", "what_to_do"), [("", "hf auth login"), ("stranger", "Ask for it on https://")])
    def test_who_has_no_access_is_told_how_to_get_it(self, download, folder, token, what_to_do):
        done = download("sam3", token=token)
        assert done.returncode == 1
        assert what_to_do in done.stderr
        assert not (folder / "sam3/config.json").exists()


class TestSam2:
    @pytest.fixture
    def place(self, tmp_path_factory) -> Path:
        """A folder with one official file, in the form that they have."""
        place = tmp_path_factory.mktemp("official")
        with zipfile.ZipFile(place / "sam2.1_hiera_tiny.pt", "w") as file:
            file.writestr("archive/data.pkl", WEIGHTS)
        return place

    def test_a_file_is_fetched_a_damaged_one_put_aside_and_a_missing_one_said(self, download, folder, place):
        file = folder / "sam2.1_hiera_tiny.pt"
        assert download("tiny", url=f"file://{place}").returncode == 0
        assert file.read_bytes() == (place / file.name).read_bytes()
        file.write_bytes(file.read_bytes()[:-100])
        assert "damaged" in download("tiny", url=f"file://{place}").stderr
        assert not file.exists()
        assert "could not be fetched" in download("large", url=f"file://{place}").stderr


def test_an_unknown_name_is_refused_before_anything_is_fetched(download, hub):
    done = download("sam3", "huge")
    assert done.returncode == 2
    assert "'huge' is none of" in done.stderr
    assert hub.asked == []
