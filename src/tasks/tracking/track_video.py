"""Track prompted objects through an image, a folder of frames or a video, and write the results.

``track_video`` gives the objects frame by frame, :class:`PredictionWriter` writes them as they come: masks as palette
PNGs, all of them as COCO JSON, and the frames with the masks drawn on them. Neither keeps frames, so memory does not
grow with the length of the video.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from ...config import Config
from ...core.console import progress_bar
from ...core.device import pick_device
from ...core.errors import UserError
from ...core.files import write_atomically
from ...data.decode.video import FrameStream
from ...data.decode.video_writer import VideoWriter
from ...data.drawing import corner_of, draw_labels, draw_masks
from ...data.prompts import PromptsByFrame, check_prompts
from ...data.records import RLE
from ...data.writers import write_palette_png
from ...gating.domain_gate import GATE_FILE, Decision
from ...gating.switching import install_saved_gate
from ...models.build import build_model
from ...models.checkpoint import ADAPTER_FOLDER, load_trained
from ...models.protocols import Prediction, Tracker
from ...models.spec import spec_of

logger = logging.getLogger(__name__)

Overlay = Literal["video", "images", "none"]

NO_CATEGORIES: Mapping[int, str] = {}
"""Object id → name of its class, where nobody named one."""

DEFAULT_CATEGORY = "object"
"""Category of objects without one."""


def track_video(
    tracker: Tracker, footage: FrameStream, prompts: PromptsByFrame, may_stop: bool = False
) -> Iterator[tuple[np.ndarray, Prediction]]:
    """Yield every frame, RGB uint8 (H, W, 3), with the objects found on it.

    Args:
        tracker: the model.
        footage: the frames.
        prompts: by frame.
        may_stop: a prompt after the last frame is a warning, as where somebody stops a camera.

    Raises:
        UserError: a prompt is outside the frames or after the last one.
    """
    last = max(prompts)
    if footage.count is not None and last >= footage.count:
        raise _beyond_the_end(last, footage.count)
    bank, decided = tracker.start(footage.count), False
    for t, frame in enumerate(footage):
        if t == 0:
            check_prompts(prompts, *frame.shape[:2])
        new = [p for p in prompts.get(t, []) if p.object_id not in bank.objects]
        known = [p for p in prompts.get(t, []) if p.object_id in bank.objects]
        seen = tracker.encode(frame, bank) if known else frame
        prediction, bank = tracker.step(seen, bank, new)
        if known:
            prediction, bank = tracker.correct(seen, bank, known)
        if not decided and bank.decision is not None:
            decided = True
            if bank.decision.distances:  # none where somebody named what to do
                logger.info(gate_line(bank.decision))
        yield frame, prediction
    if last > bank.frame:
        beyond = _beyond_the_end(last, bank.frame + 1)
        if not may_stop:
            raise beyond
        logger.warning(f"{beyond}")


def write_prediction(
    tracker: Tracker,
    footage: FrameStream,
    prompts: PromptsByFrame,
    output: Path,
    overlay: Overlay,
    may_stop: bool = False,
) -> tuple[int, dict[int, int]]:
    """Track objects, and write everything as it comes; ``may_stop`` as of :func:`track_video`.

    Returns:
        The number of frames, and object id → the number of frames it was found on.
    """
    categories = {p.object_id: p.category for on_frame in prompts.values() for p in on_frame if p.category is not None}
    with PredictionWriter(output, footage, overlay) as writer:
        found = track_video(tracker, footage, prompts, may_stop)
        for frame, prediction in progress_bar(found, total=footage.count, desc=footage.name, unit="frame"):
            writer.add(frame, prediction, categories)
    return writer.frames, writer.found


class PredictionWriter:
    """Writes the objects of a video frame by frame: ``Annotations/NAME/``, ``NAME.json`` and an overlay.

    The JSON and an overlay video appear when the block ends well.

    Args:
        output: the folder to write into.
        footage: the video; NAME is its name, and its frames give the masks their names.
        overlay: ``video`` for ``NAME.mp4``, ``images`` for JPEGs in ``Overlays/NAME/``, or ``none``.
        category_ids: ids that categories have in the JSON; others come after them.

    Attributes:
        found: object id → the number of frames it was found on.
    """

    def __init__(
        self, output: Path, footage: FrameStream, overlay: Overlay, category_ids: Mapping[str, int] | None = None
    ) -> None:
        self.output, self.footage, self.overlay = output, footage, overlay
        self.found: dict[int, int] = {}
        self._coco = CocoWriter(output / f"{footage.name}.json", footage, category_ids)
        self._video = VideoWriter(output / f"{footage.name}.mp4", footage.rate) if overlay == "video" else None

    @property
    def frames(self) -> int:
        """How many were written."""
        return self._coco.images

    def __enter__(self) -> PredictionWriter:
        with ExitStack() as stack:
            stack.enter_context(self._coco)
            if self._video is not None:
                stack.enter_context(self._video)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def add(self, frame_HWC: np.ndarray, prediction: Prediction, categories: Mapping[int, str] = NO_CATEGORIES) -> None:
        """Write what was found on the next frame, RGB uint8 (H, W, 3). Raises UserError where that is impossible."""
        name, size = self.footage.name, frame_HWC.shape[:2]
        stem = Path(self.footage.frame_file(prediction.frame)).stem
        write_palette_png(self.output / "Annotations" / name / f"{stem}.png", label_frame(prediction, size))
        self._coco.add(prediction, size, categories)
        for object_id, mask in prediction.masks.items():
            self.found[object_id] = self.found.get(object_id, 0) + bool(mask.any())
        if self._video is not None:
            self._video.write(draw_prediction(frame_HWC, prediction, categories))
        elif self.overlay == "images":
            picture_HWC = draw_prediction(frame_HWC, prediction, categories)
            write_picture(self.output / "Overlays" / name / f"{stem}.jpg", picture_HWC)


def draw_prediction(
    frame_HWC: np.ndarray, prediction: Prediction, categories: Mapping[int, str] = NO_CATEGORIES
) -> np.ndarray:
    """Return a frame with its objects' masks, and beside each its number, category and score: RGB uint8 (H, W, 3)."""
    seen = {object_id: mask for object_id, mask in prediction.masks.items() if mask.any()}
    labels = (
        (
            object_id,
            f"{object_id}: {categories.get(object_id, '')} {prediction.scores[object_id]:.2f}".replace("  ", " "),
            corner_of(mask),
        )
        for object_id, mask in seen.items()
    )
    return draw_labels(draw_masks(frame_HWC, seen), labels)


def gate_line(decision: Decision) -> str:
    """Return one line on what the domain gate measured on the frame prompted first, and decided."""
    distances = ", ".join(f"{name} {distance:.2f}" for name, distance in decision.distances.items())
    chosen = "no domain it knows, adapters off" if decision.domain is None else f"{decision.domain}, adapters on"
    return f"domain gate: {chosen} (distance to {distances}; inside is up to 1)"


def label_frame(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    """Return object numbers, uint8, (H, W); where objects overlap, the one with the highest logit."""
    if not prediction.logits:
        return np.zeros(size, dtype=np.uint8)
    ids = np.array(list(prediction.logits), dtype=np.uint8)
    highest, winner = torch.stack(list(prediction.logits.values())).max(dim=0)
    numbers: np.ndarray = np.where((highest > 0).cpu().numpy(), ids[winner.cpu().numpy()], np.uint8(0))
    return numbers


def write_picture(path: Path, picture_HWC: np.ndarray) -> None:
    """Write a JPEG whole or not at all."""
    image = Image.fromarray(picture_HWC)
    write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=92))


class CocoWriter:
    """Writes COCO JSON object by object, keeping none of it in memory; the file appears when the block ends well.

    Images are numbered from 1 in the footage's order. Objects that are not seen on a frame have no annotation there.
    """

    def __init__(self, path: Path, footage: FrameStream, category_ids: Mapping[str, int] | None = None) -> None:
        self.path, self.footage = path, footage
        self.annotations = self.images = 0
        self._categories = dict(category_ids or {})

    def __enter__(self) -> CocoWriter:
        self._image_lines = tempfile.TemporaryFile("w+", encoding="ascii")
        self._lines = tempfile.TemporaryFile("w+", encoding="ascii")
        return self

    def add(self, prediction: Prediction, size: tuple[int, int], categories: Mapping[int, str] = NO_CATEGORIES) -> None:
        """Add a frame's objects; ``size`` is its (H, W)."""
        self.images = prediction.frame + 1
        file_name, (height, width) = self.footage.frame_file(prediction.frame), size
        image = {"id": self.images, "file_name": file_name, "height": height, "width": width}
        self._image_lines.write(("" if self.images == 1 else ",\n") + json.dumps(image))
        for object_id, mask in prediction.masks.items():
            name = categories.get(object_id, DEFAULT_CATEGORY)
            category = self._categories.setdefault(name, max(self._categories.values(), default=0) + 1)
            if not mask.any():
                continue
            self.annotations += 1
            rle = RLE.encode(mask).rle
            annotation = {
                "id": self.annotations,
                "image_id": self.images,
                "category_id": category,
                "track_id": object_id,
                "score": round(prediction.scores[object_id], 4),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(coco_mask.area(rle)),
                "iscrowd": 0,
                "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
            }
            self._lines.write(("" if self.annotations == 1 else ",\n") + json.dumps(annotation))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lines, self._image_lines:
            if kind is None:
                write_atomically(self.path, self._write)

    def _write(self, path: Path) -> None:
        names = self._categories or {DEFAULT_CATEGORY: 1}
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'{{"categories": {json.dumps([{"id": key, "name": name} for name, key in names.items()])},\n')
            for title, lines in (("images", self._image_lines), ("annotations", self._lines)):
                file.write(f'"{title}": [\n')
                lines.seek(0)
                shutil.copyfileobj(lines, file)
                file.write("\n],\n" if lines is self._image_lines else "\n]}\n")


def _beyond_the_end(frame: int, count: int) -> UserError:
    frames = "there is 1 frame, number 0" if count == 1 else f"there are {count} frames, 0 to {count - 1}"
    return UserError(f"a prompt is for frame {frame}, but {frames}", "prompts.no-such-frame")


def load_model(config: Config, checkpoint: str | None, gate: str = "auto") -> nn.Module:
    """Build the run's model, with the adapters and domain gate of a checkpoint or adapter folder if one is given."""
    torch.manual_seed(config.training.seed)
    model = build_model(config.model)
    if checkpoint is not None:
        load_trained(model, checkpoint)
    install_saved_gate(model, None if checkpoint is None else _place_of_gate(Path(checkpoint)), gate)
    return model.to(pick_device(config.training.device))


def _place_of_gate(trained: Path) -> Path:
    """Return the adapter folder of a run whose checkpoint this is, where it has a gate; anything else as it is."""
    folder = trained.resolve().parent.parent / ADAPTER_FOLDER
    return folder if trained.is_file() and (folder / GATE_FILE).exists() else trained


def load_tracker(config: Config, checkpoint: str | None, gate: str = "auto") -> Tracker:
    """Return a tracker of :func:`load_model`'s model."""
    model = load_model(config, checkpoint, gate)
    return spec_of(model).load().tracker(model, keep_corrections=True)
