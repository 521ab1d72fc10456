"""A machine learning backend for Label Studio: clicks and boxes of a labeller become brush masks of an adapted SAM 2.

It answers Label Studio's HTTP calls /health, /setup and /predict. Pictures are read from --images, or fetched from
--label-studio with the access token in the environment variable LABEL_STUDIO_API_KEY, and from nowhere else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, unquote, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from xml.etree import ElementTree

import numpy as np

from sam2_mope import build_sam2_moe, cli
from sam2_mope.core.errors import UserError
from sam2_mope.data.decode.brush_rle import encode_brush
from sam2_mope.data.decode.images import read_image
from sam2_mope.lora.adapter import iter_adapter_layers
from sam2_mope.models.sam2.predictors import image_predictor
from sam2_mope.models.spec import spec_of

logger = logging.getLogger("sam2_mope.label_studio")

MAX_REQUEST = 64 * 2**20
SECONDS = 60  # that a picture may take to come


class Pictures:
    """Where tasks' pictures are: a folder, or Label Studio itself."""

    def __init__(self, folder: str | None, studio: str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.studio = None if studio is None else studio.rstrip("/") + "/"

    def read(self, address: str) -> np.ndarray:
        """Return a picture, RGB uint8 (H, W, 3), by its address in a task."""
        if self.folder is not None and (path := self._in_folder(self.folder, address)) is not None:
            return np.asarray(read_image(path))
        url = urljoin(self.studio or "", address)
        if self.studio is None or urlsplit(url)[:2] != urlsplit(self.studio)[:2]:
            raise UserError(
                f"{address}: not in the folder of --images ({self.folder}), nor on --label-studio ({self.studio})"
            )
        return self._fetch(url)

    def _in_folder(self, folder: Path, address: str) -> Path | None:
        """Return the file of an address: as local files are served (``?d=``), or by its name, uploaded or own."""
        parts = urlsplit(address)
        name = Path(unquote(parts.path)).name
        for relative in (*parse_qs(parts.query).get("d", []), name, re.sub(r"^[0-9a-f]{8}-", "", name)):
            path = (folder / relative).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
        return None

    def _fetch(self, url: str) -> np.ndarray:
        key = os.environ.get("LABEL_STUDIO_API_KEY")
        request = Request(url, headers={"Authorization": f"Token {key}"} if key else {})
        try:
            with (
                build_opener(_SameHost).open(request, timeout=SECONDS) as answer,
                tempfile.NamedTemporaryFile(suffix=Path(urlsplit(url).path).suffix) as file,
            ):
                shutil.copyfileobj(answer, file)
                file.flush()
                return np.asarray(read_image(file.name))
        except URLError as error:
            raise UserError(f"{url}: {error}; is LABEL_STUDIO_API_KEY set?") from error


class _SameHost(HTTPRedirectHandler):
    """Follows no link to another host, which would be sent the access token."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            raise UserError(f"{req.full_url}: leads to another host; give the pictures by --images")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Backend:
    """Answers Label Studio's calls with the masks of an image predictor."""

    def __init__(self, predictor: Any, pictures: Pictures, version: str) -> None:
        self.predictor, self.pictures, self.version = predictor, pictures, version
        self._shown: str | None = None  # the picture whose features the predictor holds
        self._one_at_a_time = threading.Lock()

    def answer(self, path: str, content: Any) -> dict[str, Any] | None:
        """Return the answer to a call; None: there is no such call."""
        if path in ("/", "/health"):
            return {"status": "UP", "model_class": "SAM2-MoPE"}
        if path == "/setup":
            return {"model_version": self.version}
        if path == "/webhook":
            return {"status": "ignored: this backend does not train"}
        return {"results": self.predict(content)} if path == "/predict" else None

    def predict(self, content: Any) -> list[dict[str, Any]]:
        """Return the prediction for the labeller's clicks and box on a task; none where nothing is pointed at."""
        try:
            context = (content.get("params") or {}).get("context") or {}
            regions, (task, *_) = context.get("result") or [], content["tasks"]
            if not regions:
                return []
            brush, image, key = _controls(content["label_config"])
            height, width = (int(regions[0][f"original_{side}"]) for side in ("height", "width"))
            prompts, label = _prompts(regions, height, width)
            address = str(task["data"][key])
        except (AttributeError, KeyError, TypeError, ValueError, ElementTree.ParseError) as error:
            raise UserError(f"/predict: not a call of Label Studio: {type(error).__name__}: {error}") from error
        with self._one_at_a_time:
            mask_HW, score = self._segment(address, (height, width), prompts)
        value = {"format": "rle", "rle": encode_brush(mask_HW), "brushlabels": [label]}
        region = {
            "id": uuid.uuid4().hex[:8], "type": "brushlabels", "from_name": brush, "to_name": image, "value": value,
            "original_width": width, "original_height": height, "image_rotation": 0, "score": score, "readonly": False,
        }  # fmt: skip
        return [{"result": [region], "score": score, "model_version": self.version}]

    def _segment(self, address: str, size: tuple[int, int], prompts: dict[str, Any]) -> tuple[np.ndarray, float]:
        if address != self._shown:
            picture = self.pictures.read(address)
            if picture.shape[:2] != size:
                found = f"{picture.shape[1]}×{picture.shape[0]}"
                raise UserError(f"{address}: {found} pixels here, {size[1]}×{size[0]} in Label Studio")
            self._shown = None
            self.predictor.set_image(picture)
            self._shown = address
        masks, scores, _ = self.predictor.predict(**prompts, multimask_output=_is_one_click(prompts))
        best = int(np.argmax(scores))
        return masks[best] > 0, float(scores[best])


def _is_one_click(prompts: dict[str, Any]) -> bool:
    """Return whether several masks fit what is pointed at, so that the best of three is better than one."""
    return prompts["box"] is None and len(prompts["point_coords"]) == 1


def _controls(label_config: str) -> tuple[str, str, str]:
    """Return the names of the brush and of its image, and the key of a task's data that has the picture's address."""
    root = ElementTree.fromstring(label_config)
    images = {each.get("name"): each.get("value", "") for each in root.iter("Image")}
    for brush in root.iter("BrushLabels"):
        if (image := brush.get("toName")) in images:
            return str(brush.get("name")), str(image), images[image].lstrip("$")
    raise UserError('the labelling setup has no <BrushLabels toName="…"> of an <Image>; add one for the masks')


def _prompts(regions: list[Any], height: int, width: int) -> tuple[dict[str, Any], str]:
    """Return the clicks and the box in pixels, as SAM 2's image predictor takes them, and the label chosen last."""
    points, labels, box, label = [], [], None, ""
    for region in regions:
        value, kind = region["value"], region["type"]
        x, y = value["x"] / 100 * width, value["y"] / 100 * height
        if kind == "keypointlabels":
            points.append([x, y])
            labels.append(int(region.get("is_positive", True)))
        elif kind == "rectanglelabels":
            box = np.array([x, y, x + value["width"] / 100 * width, y + value["height"] / 100 * height], np.float32)
        else:
            continue
        label = value[kind][0]
    if not points and box is None:
        raise UserError("nothing is pointed at: use a smart <KeyPointLabels> or <RectangleLabels>")
    clicks = (np.array(points, np.float32), np.array(labels, np.int32)) if points else (None, None)
    return {"point_coords": clicks[0], "point_labels": clicks[1], "box": box}, label


class Calls(BaseHTTPRequestHandler):
    """HTTP: JSON in and out; mistakes are one line with status 400, and the server goes on."""

    backend: Backend

    def do_GET(self) -> None:
        self._serve(b"{}")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_REQUEST:
            self._send(413, {"error": f"over {MAX_REQUEST} bytes"})
        else:
            self._serve(self.rfile.read(length))

    def _serve(self, body: bytes) -> None:
        try:
            answer = self.backend.answer(urlsplit(self.path).path, json.loads(body or b"{}"))
        except (UserError, ValueError) as error:
            logger.warning(f"{self.path}: {error}")
            self._send(400, {"error": str(error)})
        except Exception as error:
            logger.exception(f"{self.path} failed")
            self._send(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self._send(*((404, {"error": f"no such call: {self.path}"}) if answer is None else (200, answer)))

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format % arguments)


def main(arguments: argparse.Namespace) -> None:
    if arguments.images is not None and not Path(arguments.images).is_dir():
        raise UserError(f"--images {arguments.images}: no such folder")
    if arguments.images is None and arguments.label_studio is None:
        raise UserError("say where pictures are: --images FOLDER, or --label-studio URL with LABEL_STUDIO_API_KEY set")
    model = build_sam2_moe(arguments.config, device=arguments.device, adapter=arguments.adapter, gate=arguments.gate)
    layers = dict(iter_adapter_layers(model)) if arguments.adapter else {}
    if layers and all(name.startswith(spec_of(model).memory) for name in layers):
        logger.warning(
            "warning: all adapted layers are in SAM 2's memory, which single pictures do not use: masks are the base's"
            "; train with lora.target_modules in image encoder or mask decoder"
        )
    version = f"{Path(arguments.config).stem}, {arguments.adapter or 'the base'}"
    pictures = Pictures(arguments.images, arguments.label_studio)
    handler = type("Handler", (Calls,), {"backend": Backend(image_predictor(model), pictures, version)})
    with ThreadingHTTPServer((arguments.host, arguments.port), handler) as server:
        print(f"Label Studio's backend URL: http://{arguments.host}:{server.server_port} ({version})", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m examples.label_studio_backend --adapter experiments/adapter --images data")
    parser.add_argument("--config", default="src/configs/mope.yaml", metavar="YAML", help="the run's YAML")
    parser.add_argument("--adapter", metavar="PATH", help="adapter folder, checkpoint or user/name (default: the base)")
    parser.add_argument("--gate", default="auto", metavar="MODE", help="auto, on, off or a domain's name")
    parser.add_argument("--images", metavar="FOLDER", help="the project's pictures, by their names")
    parser.add_argument("--label-studio", metavar="URL", help="fetch pictures from here instead")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for a Label Studio in a container")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--device", default="auto")
    cli.run(main, parser)
