"""Label Studio's calls, over HTTP: a labeller's clicks and boxes come back as brush masks of the adapted model."""

from __future__ import annotations

import json
import runpy
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from src.data.decode.brush_rle import decode_brush
from src.data.formats.reader import Location
from src.data.formats.registry import recognise
from tests.sources import open_place

pytestmark = pytest.mark.usefixtures("installed")

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "data/sample/valid"
SETUP = """<View><Image name="image" value="$picture"/>
  <BrushLabels name="mask" toName="image"><Label value="cell"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="cell"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="cell"/></RectangleLabels></View>"""
SIZE = {"original_width": 256, "original_height": 256}
INSIDE = {"x": 25, "y": 25, "width": 50, "height": 50, "rectanglelabels": ["cell"]}
BOX = {"type": "rectanglelabels", "value": INSIDE, **SIZE}


def click(x: float, y: float, positive: bool) -> dict:
    value = {"x": x, "y": y, "width": 0.4, "keypointlabels": ["cell"]}
    return {"type": "keypointlabels", "is_positive": positive, "value": value, **SIZE}


@pytest.fixture(scope="module")
def model(installed):
    return import_module("sam2_mope").build_sam2_moe(str(ROOT / "src/configs/mope.yaml"), device="cpu")


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(ROOT / "examples/label_studio_backend.py"))


@pytest.fixture
def serve(model, example) -> Iterator[Callable[..., str]]:
    """``serve(images, studio)`` starts the backend and returns its URL."""
    servers = []

    def start(images: Path | None, studio: str | None = None) -> str:
        predictor = import_module("sam2_mope.models.sam2.predictors").image_predictor(model)
        pictures = example["Pictures"](None if images is None else str(images), studio)
        backend = example["Backend"](predictor, pictures, "v1")
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), type("H", (example["Calls"],), {"backend": backend})))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def call(url: str, content: object = None) -> tuple[int, dict]:
    data = None if content is None else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def pointing(picture: str, *regions: dict, setup: str = SETUP) -> dict:
    """A call of /predict, as Label Studio makes it."""
    return {
        "tasks": [{"id": 3, "data": {"picture": picture}}], "model_version": None, "project": "1.1700000000",
        "label_config": setup, "params": {"login": None, "password": None, "context": {"result": list(regions)}},
    }  # fmt: skip


def test_clicks_and_boxes_become_masks(serve, model, tmp_path):
    url = serve(IMAGES)
    assert call(f"{url}/health") == (200, {"status": "UP", "model_class": "SAM2-MoPE"})
    setup = {"project": "1.1700000000", "schema": SETUP, "hostname": "", "access_token": "", "extra_params": None}
    assert call(f"{url}/setup", setup) == (200, {"model_version": "v1"})
    picture = "/data/upload/1/0badcafe-cells_10000.jpg"
    status, answer = call(f"{url}/predict", pointing(picture, BOX, click(50, 50, True), click(30, 30, False)))
    assert status == 200
    ((region,),) = [each["result"] for each in answer["results"]]
    assert (region["from_name"], region["to_name"], region["type"]) == ("mask", "image", "brushlabels")
    assert region["value"]["brushlabels"] == ["cell"]

    predictor = import_module("sam2_mope.models.sam2.predictors").image_predictor(model)
    predictor.set_image(import_module("sam2_mope.data.decode.images").read_image(IMAGES / "cells_10000.jpg"))
    masks, scores, _ = predictor.predict(
        point_coords=np.array([[128, 128], [76.8, 76.8]]), point_labels=np.array([1, 0]),
        box=np.array([64, 64, 192, 192]), multimask_output=False,
    )  # fmt: skip
    assert 0 < masks[0].sum() < masks[0].size
    assert np.array_equal(decode_brush(region["value"]["rle"], 256, 256), masks[0] > 0)
    assert region["score"] == pytest.approx(float(scores[0]), abs=1e-6)
    assert call(f"{url}/predict", pointing(picture)) == (200, {"results": []})

    # the way back: what Label Studio exports of it is a data set
    task = {"id": 3, "data": {"picture": picture}, "annotations": [{"was_cancelled": False, "result": [region]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    location = Location(IMAGES, tmp_path / "export.json")
    assert recognise(location)[0].name == "label_studio"
    named = import_module("src.config").NamedSplit(
        name="back", img_folder=str(IMAGES), ann_file=str(location.annotations)
    )
    record, issues = open_place(named).read(0)
    assert not issues
    assert record.objects[0].category == "cell"
    assert np.array_equal(record.objects[0].segmentations[0].decode(), masks[0] > 0)


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("/predict", pointing("/data/upload/1/none.jpg", BOX), 400, "none.jpg: not in the folder of --images"),
        ("/predict", pointing("?d=../../../pyproject.toml", BOX), 400, "not in the folder of --images"),
        ("/predict", pointing("http://elsewhere/a.jpg", BOX), 400, "nor on --label-studio (None)"),
        ("/predict", pointing("cells_10000.jpg", {**BOX, "original_width": 64}), 400, "256×256 pixels here, 64×256 in"),
        ("/predict", pointing("cells_10000.jpg", BOX, setup="<View/>"), 400, "no <BrushLabels"),
        ("/predict", pointing("cells_10000.jpg", BOX, setup="<View"), 400, "not a call of Label Studio"),
        ("/predict", pointing("cells_10000.jpg", {"type": "rectanglelabels"}), 400, "not a call of Label Studio"),
        ("/predict", [], 400, "not a call of Label Studio"),
        ("/train", {}, 404, "no such call"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_the_server_goes_on(serve, path, content, status, words):
    url = serve(IMAGES)
    found, answer = call(url + path, content)
    assert found == status
    assert words in answer["error"]
    assert call(f"{url}/health")[0] == 200


class Studio(BaseHTTPRequestHandler):
    """Label Studio's own files, for who has the token."""

    def do_GET(self) -> None:
        there = self.headers["Authorization"] == "Token secret"
        self.send_response(302 if "away" in self.path else 200 if there else 401)
        self.send_header("Location", "http://localhost:1/a.jpg")
        self.end_headers()
        self.wfile.write((IMAGES / "cells_10001.jpg").read_bytes() if there else b"")

    def log_message(self, *_: object) -> None:
        pass


def test_pictures_come_from_label_studio_with_its_token(serve, monkeypatch):
    studio = ThreadingHTTPServer(("127.0.0.1", 0), Studio)
    threading.Thread(target=studio.serve_forever, daemon=True).start()
    url = serve(None, f"http://127.0.0.1:{studio.server_port}")
    asked = pointing("/data/upload/1/a.jpg", BOX)
    status, answer = call(f"{url}/predict", asked)
    assert (status, "is LABEL_STUDIO_API_KEY set?" in answer["error"]) == (400, True)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
    assert call(f"{url}/predict", asked)[0] == 200
    status, answer = call(f"{url}/predict", pointing("/data/away.jpg", BOX))
    assert (status, "leads to another host" in answer["error"]) == (400, True)
    studio.shutdown()
    studio.server_close()


def test_it_says_what_is_missing(run_script, tmp_path):
    script = ROOT / "examples/label_studio_backend.py"
    assert "say where pictures are: --images FOLDER" in run_script(script)[2]
    assert run_script(script, "--images", tmp_path / "none")[0] == 2
