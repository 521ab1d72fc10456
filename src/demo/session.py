"""A session of the demo: a picture or video, prompts on it, and the masks of base and adapted model.

    models = Models(config, "experiments/adapter")
    session = Session(models)
    session.open(open_input("clip.mp4", 200))
    session.mark("on it", frame=0, object_id=1, x=120, y=80)
    session.view(0).adapted                          # a picture with the mask
    for done in session.track():                     # frame by frame
        ...
    session.files()                                  # masks and a video, to take away

It knows nothing of any page. The masks are those of ``sam2-mope predict``: both go through
:func:`~src.tasks.tracking.track_video.track_video`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.errors import UserError
from ..core.files import write_atomically
from ..data.decode.video_writer import VideoWriter
from ..data.drawing import draw_masks, draw_prompts
from ..data.prompts import PromptsByFrame
from ..data.records import RLE
from ..evaluation.metrics import region_similarity
from ..gating.domain_gate import Decision
from ..models.protocols import Prediction
from ..tasks.tracking.track_video import PredictionWriter, track_video
from .expert_maps import Choices, draw_expert_map, mean_share, record_expert_maps
from .inputs import DemoInput
from .marks import Kind, Mark, Marks
from .models import Models


@dataclass(frozen=True)
class Found:
    """Results on a frame: each model's masks by object id, and the experts selected by layer."""

    base: dict[int, RLE]
    adapted: dict[int, RLE]
    chosen: dict[str, Choices]

    @classmethod
    def of(cls, predictions: tuple[Prediction, Prediction], chosen: dict[str, Choices]) -> Found:
        """Encode base's and adapted model's predictions, which saves memory."""
        base, adapted = ({i: RLE.encode(mask) for i, mask in p.masks.items()} for p in predictions)
        return cls(base, adapted, chosen)


@dataclass(frozen=True)
class View:
    """Pictures of a frame, RGB uint8 (H, W, 3).

    Attributes:
        prompted: with its prompts.
        base, adapted: with that model's masks.
        masks_from: origin of the masks, or why there are none.
    """

    prompted: np.ndarray
    base: np.ndarray
    adapted: np.ndarray
    masks_from: str


class Session:
    """One person's picture or video, prompts and results.

    Attributes:
        source: the picture or video; None at the start.
        mode: one of ``models.modes``.
        folder: of its files.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.mode = models.modes[0]
        self.source: DemoInput | None = None
        self._temporary = tempfile.TemporaryDirectory(prefix="sam2_mope_demo_")
        self.folder = Path(self._temporary.name)
        self._marks = Marks()
        self._tracked: list[Found] = []
        self._previews: dict[int, Found] = {}
        self._decisions: dict[int, Decision] = {}

    def close(self) -> None:
        """Remove the session's files; it cannot be used any more."""
        self._temporary.cleanup()

    def open(self, source: DemoInput) -> None:
        """Start over with another picture or video."""
        self.source = source
        self._decisions.clear()
        self.clear()

    def choose_mode(self, mode: str) -> None:
        """Overrule the domain gate, or with ``auto`` let it decide again."""
        if mode not in self.models.modes:
            raise UserError(f"gate '{mode}': choose one of {', '.join(self.models.modes)}", code="demo.unknown-mode")
        if mode != self.mode:
            self.mode = mode
            self._discard_results()

    def mark(self, kind: Kind, frame: int, object_id: int, x: float, y: float) -> None:
        """Point at an object. A further pair of corners on a frame replaces the object's box there.

        Raises:
            UserError: there is no such frame, the object's number is out of range, or the box has no area.
        """
        self._source_of(frame)
        self._marks.add(Mark(kind, frame, object_id, x, y))
        self._discard_results()

    def undo(self) -> None:
        """Remove the last mark."""
        self._marks.undo()
        self._discard_results()

    def clear(self) -> None:
        """Remove all marks."""
        self._marks.clear()
        self._discard_results()

    def prompts(self) -> PromptsByFrame:
        """Return the marks as prompts; a corner without its opposite is not among them."""
        return self._marks.prompts()

    def view(self, frame: int) -> View:
        """Return a frame with its masks: tracked ones, or those of the prompts on it alone.

        Raises:
            UserError: there is no such frame, or it cannot be read.
        """
        source = self._source_of(frame)
        picture = source.frame(frame)
        prompted = draw_prompts(
            picture, [*self.prompts().get(frame, []), *self._marks.half_boxes(frame, max(source.size) / 100)]
        )
        found = self._found(frame)
        if found is None:
            return View(prompted, picture, picture, "no masks yet: point at an object")
        base, adapted = _decoded(found.base), _decoded(found.adapted)
        origin = "tracked" if self._tracked else "of the prompts on this frame alone"
        return View(
            prompted,
            draw_masks(picture, base),
            draw_masks(picture, adapted),
            f"masks: {origin}{''.join(_compared(base, adapted))}",
        )

    def gate_line(self) -> str:
        """Return the domain gate's decision on the first prompted frame, or frame 0, and its effect."""
        self._source_of(0)
        used = self._used()
        if self.models.gate is None:
            return f"the adapter folder has no domain gate\nmode {self.mode}: adapters {self.mode}"
        done = f"mode {self.mode}: " + (f"adapters on ({used})" if used else "adapters off, the base model's masks")
        decision = self._decision()
        verdict = f"this is {decision.domain}" if decision.domain else "none of the domains it knows"
        return (
            f"domain gate on frame {self._decided_frame()}: {verdict}\n"
            f"distance in units of the domain's threshold: {_distances(decision)}\n{done}"
        )

    def track(self) -> Iterator[int]:
        """Track through all frames with both models; yield the number of frames done after each.

        Raises:
            UserError: there is no prompt, or a frame cannot be read.
        """
        source, prompts = self._source_of(0), self.prompts()
        if not prompts:
            raise UserError(
                "nothing is pointed at yet: click on an object, or two corners of its box", code="demo.no-prompt"
            )
        shutil.rmtree(self._masks, ignore_errors=True)
        tracked: list[Found] = []
        with ExitStack() as stack:
            writers = [
                stack.enter_context(PredictionWriter(self._masks / model, source, "none"))
                for model in ("base", "adapted")
            ]
            video = stack.enter_context(VideoWriter(self._video, source.rate))
            for frame, predictions, chosen in self._run(source, prompts):
                for writer, prediction in zip(writers, predictions, strict=True):
                    writer.add(frame, prediction)
                video.write(np.concatenate([draw_masks(frame, p.masks) for p in predictions], axis=1))
                tracked.append(Found.of(predictions, chosen))
                yield len(tracked)
        shutil.make_archive(str(self._masks), "zip", self._masks)
        self._tracked = tracked

    def files(self) -> tuple[Path, Path]:
        """Return a video of both models side by side, and a zip of each one's palette PNGs and COCO JSON."""
        if not self._tracked:
            raise UserError("there are no masks to take away yet: track first", code="demo.nothing-tracked")
        return self._video, self._masks.with_suffix(".zip")

    def picture_file(self, picture_HWC: np.ndarray) -> Path:
        """Write a picture, RGB uint8, as PNG; the same picture has the same file, which never changes."""
        name = hashlib.sha256(f"{picture_HWC.shape}".encode() + picture_HWC.tobytes()).hexdigest()
        path = self.folder / "pictures" / f"{name}.png"
        if not path.exists():
            write_atomically(path, partial(Image.fromarray(picture_HWC).save, format="PNG"))
        return path

    def experts(self, frame: int, layer: str | None, choice: str | None) -> tuple[np.ndarray | None, str]:
        """Draw which experts acted where on a frame.

        Args:
            frame: frame number.
            layer: one of ``models.layers``; None for the mean over layers whose tokens are places on the frame.
            choice: one of ``models.choices``, whose share is shown; None for the one of the largest share.

        Returns:
            A picture of :func:`~src.demo.expert_maps.draw_expert_map`, None where nothing was routed. And one line
            about it.
        """
        source = self._source_of(frame)
        found = self._found(frame)
        shown = {} if found is None else found.chosen
        if layer is not None:
            shown = {name: choices for name, choices in shown.items() if name == layer}
        names = next((choices.names for choices in shown.values()), [])
        if not shown or (choice is not None and choice not in names):
            return None, self._why_no_experts(frame, found, bool(shown))
        about = layer or f"mean over {len(shown)} of {len(self.models.layers)} layers"
        return draw_expert_map(source.frame(frame), mean_share(shown), names, choice), f"frame {frame}: {about}"

    def _why_no_experts(self, frame: int, found: Found | None, ran: bool) -> str:
        """Return why there is no picture of experts."""
        if not self.models.layers:
            return "these adapters have no experts (lora.method is not mope)"
        if found is None:
            return "nothing has run on this frame yet"
        if self._used() is None:
            return "adapters are off, so no expert acted"
        if ran:
            return "the active adapters have no expert of this number"
        if found.chosen:
            return "this layer's tokens are memories and no places on the frame, or it did not run"
        if self.models.in_memory_only and frame in self.prompts():
            return (
                "nothing was routed: the adapters are in memory attention, which prompted frames do not pass through; "
                "track, and look at a later frame"
            )
        return "nothing was routed on this frame"

    def _decided_frame(self) -> int:
        """Return the frame that the domain gate decides on: the first prompted one."""
        return min(self.prompts(), default=0)

    def _decision(self) -> Decision:
        frame = self._decided_frame()
        if frame not in self._decisions:
            self._decisions[frame] = self.models.decide(self._source_of(frame).frame(frame))
        return self._decisions[frame]

    def _used(self) -> str | None:
        """Return the domain whose adapters are on, without a domain gate ``on``; None if they are off."""
        if self.mode == "off":
            return None
        if self.mode == "auto":
            return self._decision().domain
        if self.models.gate is not None and self.mode == "on":
            return min(distances, key=distances.__getitem__) if (distances := self._decision().distances) else None
        return self.mode

    def _found(self, frame: int) -> Found | None:
        """Return a frame's results; without tracking they are computed for the prompts on it."""
        if self._tracked:
            return self._tracked[frame]
        prompts = self.prompts().get(frame)
        if prompts is None:
            return None
        if frame not in self._previews:
            assert self.source is not None, "it has prompts"
            still = DemoInput(self.source.name, [self.source.frames[frame]])
            _, predictions, chosen = next(self._run(still, {0: prompts}))
            self._previews[frame] = Found.of(predictions, chosen)
        return self._previews[frame]

    def _run(
        self, source: DemoInput, prompts: PromptsByFrame
    ) -> Iterator[tuple[np.ndarray, tuple[Prediction, Prediction], dict[str, Choices]]]:
        """Yield each frame, both models' predictions, and the experts selected."""
        tracker = self.models.tracker(self._used())
        before, after = track_video(self.models.base, source, prompts), track_video(tracker, source, prompts)
        for _ in range(source.count):
            with self.models.lock, record_expert_maps(tracker.predictor, self.models.grid) as maps:
                frame, base = next(before)
                adapted = base if tracker is self.models.base else next(after)[1]
                chosen = maps.take()
            yield frame, (base, adapted), chosen

    def _discard_results(self) -> None:
        self._tracked = []
        self._previews.clear()

    def _source_of(self, frame: int) -> DemoInput:
        if self.source is None:
            raise UserError("there is no picture yet: upload one, or take a sample", code="demo.no-input")
        if not 0 <= frame < self.source.count:
            raise UserError(
                f"there is no frame {frame}: {self.source.name} has {self.source.count}", code="demo.no-frame"
            )
        return self.source

    @property
    def _masks(self) -> Path:
        return self.folder / "masks"

    @property
    def _video(self) -> Path:
        return self.folder / "base_and_adapted.mp4"


def _distances(decision: Decision) -> str:
    return ", ".join(
        f"{name} {distance:.2f} ({'inside' if distance <= 1 else 'outside'})"
        for name, distance in decision.distances.items()
    )


def _decoded(masks: dict[int, RLE]) -> dict[int, np.ndarray]:
    return {object_id: mask.decode() for object_id, mask in masks.items()}


def _compared(base: dict[int, np.ndarray], adapted: dict[int, np.ndarray]) -> Iterator[str]:
    """Yield how alike two models' masks are, object by object."""
    for object_id, mask in base.items():
        other = adapted[object_id]
        same = "the same" if np.array_equal(mask, other) else f"IoU {region_similarity(mask, other):.2f}"
        yield f"; object {object_id}: base and adapted {same}"
