"""Trying an adapter on: a picture or video, prompts on it, and what base and adapted model make of them.

    models = Models(config, "experiments/adapter")
    session = Session(models)
    session.look_at(open_material("clip.mp4", 200, config, moving=True))
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
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..config import GATE_MODES, Config
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..core.files import write_atomically
from ..data.decode.video import VideoWriter
from ..data.drawing import draw_masks, draw_prompts
from ..data.prompts import MAX_OBJECT_ID, Prompt, PromptsByFrame
from ..data.records import RLE
from ..evaluation.expert_use import choice_names
from ..evaluation.metrics import region_similarity
from ..gating.domain_gate import Decision
from ..lora.adapter import iter_adapter_layers, list_groups
from ..lora.expert_groups import active_adapter
from ..lora.moe_layer import MoELoRALinear
from ..models.sam2.gate_hooks import decide_for_frame, gating_of, install_gate
from ..models.sam2.streaming import Prediction, StreamingTracker
from ..tasks.tracking.track_video import PredictionWriter, load_tracker, track_video
from .expert_maps import Choices, draw_expert_map, mean_share, record_expert_maps
from .material import DemoInput

Kind = Literal["on it", "beside it", "corner of a box"]


class Models:
    """A run's base and adapted model, for any number of sessions, which take turns.

    Args:
        config: the run.
        adapter: its adapter folder or a checkpoint.

    Attributes:
        modes: what a session may set ``mode`` to: the domain gate's modes and domains, or without a gate on and off.
        layers: the dotted names of the layers with experts.
        choices: what their gates choose from, the longest list there is.
        in_memory_only: whether all adapters lie in memory attention, so that prompted frames pass through none.

    Raises:
        UserError: weights or adapters are missing, damaged or of another base, or there are several expert groups and
            no gate to choose between them.
    """

    def __init__(self, config: Config, adapter: str) -> None:
        self.lock = threading.Lock()
        self.base = load_tracker(config, None)
        self.adapted = load_tracker(config, adapter)
        model = self.adapted.predictor
        gating = gating_of(model)
        self.gate = None if gating is None else gating.gate
        groups = list_groups(model)
        if groups and self.gate is None and active_adapter(model) is None:
            raise UserError(
                f"{adapter} holds the groups {', '.join(groups)} and no domain gate to choose between them: "
                f"take one out with {PROGRAM} groups extract"
            )
        self.modes = ["on", "off"] if self.gate is None else [*GATE_MODES, *self.gate.domains]
        adapters = dict(iter_adapter_layers(model))
        experts = {name: layer for name, layer in adapters.items() if isinstance(layer, MoELoRALinear)}
        self.layers = list(dict.fromkeys(name.partition(".groups.")[0] for name in experts))
        self.choices = max((choice_names(layer.gate) for layer in experts.values()), key=len, default=[])
        self.in_memory_only = bool(adapters) and all(name.startswith("memory_attention.") for name in adapters)

    def tracker(self, used: str | None) -> StreamingTracker:
        """The adapted model with a domain's adapters on (without a gate: with its adapters); the base for None."""
        if used is None:
            return self.base
        if self.gate is None:
            return self.adapted
        tracker = StreamingTracker(self.adapted.predictor, keep_corrections=True)
        install_gate(tracker.predictor, self.gate, used)
        return tracker

    def decide(self, frame_HWC: np.ndarray) -> Decision:
        """What the gate says of a frame; without a gate that it is of no domain."""
        if self.gate is None:
            return Decision(None, {})
        with self.lock:
            return decide_for_frame(self.base.predictor, self.gate, frame_HWC)


@dataclass(frozen=True)
class Mark:
    """A click: on an object, beside it, or one of the two corners of its box; (x, y) in pixels of the frame."""

    kind: Kind
    frame: int
    object_id: int
    x: float
    y: float


@dataclass(frozen=True)
class Found:
    """What was found on a frame: object id → mask, of each model; and layer → what its experts did there."""

    base: dict[int, RLE]
    adapted: dict[int, RLE]
    chosen: dict[str, Choices]

    @classmethod
    def of(cls, predictions: tuple[Prediction, Prediction], chosen: dict[str, Choices]) -> Found:
        """What base and adapted model predicted, in the little memory that encoded masks take."""
        base, adapted = ({i: RLE.encode(mask) for i, mask in p.masks.items()} for p in predictions)
        return cls(base, adapted, chosen)


@dataclass(frozen=True)
class View:
    """A frame to look at, three pictures RGB uint8 (H, W, 3): with its prompts, and with each model's masks.

    ``masks_from`` says where the masks are from, or why there are none.
    """

    prompted: np.ndarray
    base: np.ndarray
    adapted: np.ndarray
    masks_from: str


class Session:
    """One person's picture or video, prompts and results.

    Attributes:
        material: what is looked at; None at the start.
        mode: one of ``models.modes``.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.mode = models.modes[0]
        self.material: DemoInput | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="sam2_mope_demo_")
        self._marks: list[Mark] = []
        self._tracked: list[Found] = []
        self._previews: dict[int, Found] = {}
        self._decisions: dict[int, Decision] = {}

    def close(self) -> None:
        """Remove the files that were made; the session cannot be used any more."""
        self._folder.cleanup()

    def look_at(self, material: DemoInput) -> None:
        """Begin anew with another picture or video."""
        self.material = material
        self._decisions.clear()
        self.clear()

    def choose_mode(self, mode: str) -> None:
        """Overrule the domain gate, or with ``auto`` let it decide again."""
        if mode not in self.models.modes:
            raise UserError(f"gate '{mode}': choose one of {', '.join(self.models.modes)}")
        if mode != self.mode:
            self.mode = mode
            self._forget_results()

    def mark(self, kind: Kind, frame: int, object_id: int, x: float, y: float) -> None:
        """Point at an object. A further pair of corners on a frame replaces the object's box there.

        Raises:
            UserError: there is nothing to point at, the object's number is out of range, or the box has no area.
        """
        self._known_frame(frame)
        if not 1 <= object_id <= MAX_OBJECT_ID:
            raise UserError(f"objects are numbered 1 to {MAX_OBJECT_ID}, not {object_id}")
        mark = Mark(kind, frame, object_id, x, y)
        before = self._corners(frame, object_id)
        if kind == "corner of a box" and len(before) % 2 and (before[-1].x == x or before[-1].y == y):
            raise UserError("this corner makes a box without area: click the one opposite")
        self._marks.append(mark)
        self._forget_results()

    def undo(self) -> None:
        """Take the last mark back."""
        if not self._marks:
            raise UserError("there is no prompt to take back")
        self._marks.pop()
        self._forget_results()

    def clear(self) -> None:
        """Take all marks back."""
        self._marks.clear()
        self._forget_results()

    def prompts(self) -> PromptsByFrame:
        """The marks as prompts; a corner whose opposite is missing is not among them."""
        found: PromptsByFrame = {}
        for frame, object_id in sorted({(mark.frame, mark.object_id) for mark in self._marks}):
            clicks = [m for m in self._of(frame, object_id) if m.kind != "corner of a box"]
            corners = self._corners(frame, object_id)
            pair = corners[len(corners) // 2 * 2 - 2 : len(corners) // 2 * 2]
            if clicks or pair:
                points = tuple((mark.x, mark.y) for mark in clicks)
                labels = tuple(int(mark.kind == "on it") for mark in clicks)
                found.setdefault(frame, []).append(Prompt(object_id, points, labels, _box(pair)))
        return found

    def view(self, frame: int) -> View:
        """A frame with what is known of it: tracked masks, or those of the prompts on it alone.

        Raises:
            UserError: there is no such frame, or it cannot be read.
        """
        material = self._known_frame(frame)
        picture = material.frame(frame)
        prompted = draw_prompts(picture, [*self.prompts().get(frame, []), *self._half_boxes(frame)])
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
        """What the domain gate says of the frame prompted first (until there is one, of frame 0), and what is done."""
        self._known_frame(0)
        used = self._used()
        if self.models.gate is None:
            return f"the adapter folder has no domain gate\nmode {self.mode}: adapters {self.mode}"
        done = f"mode {self.mode}: " + (f"adapters on ({used})" if used else "adapters off, the base model's masks")
        decision = self._decision()
        says = f"this is {decision.domain}" if decision.domain else "none of the domains it knows"
        distances = ", ".join(
            f"{name} {distance:.2f} ({'inside' if distance <= 1 else 'outside'})"
            for name, distance in decision.distances.items()
        )
        return (
            f"domain gate on frame {self._asked_frame()}: {says}\n"
            f"distance in units of the domain's threshold: {distances}\n{done}"
        )

    def track(self) -> Iterator[int]:
        """Track through all frames with both models; gives the number of frames done after each.

        Raises:
            UserError: nothing is pointed at, or a frame cannot be read.
        """
        material, prompts = self._known_frame(0), self.prompts()
        if not prompts:
            raise UserError("nothing is pointed at yet: click on an object, or two corners of its box")
        shutil.rmtree(self._masks, ignore_errors=True)
        tracked: list[Found] = []
        with ExitStack() as stack:
            writers = [
                stack.enter_context(PredictionWriter(self._masks / model, material, "none"))
                for model in ("base", "adapted")
            ]
            video = stack.enter_context(VideoWriter(self._video, material.rate))
            for frame, predictions, chosen in self._run(material, prompts):
                for writer, prediction in zip(writers, predictions, strict=True):
                    writer.add(frame, prediction)
                video.write(np.concatenate([draw_masks(frame, p.masks) for p in predictions], axis=1))
                tracked.append(Found.of(predictions, chosen))
                yield len(tracked)
        shutil.make_archive(str(self._masks), "zip", self._masks)
        self._tracked = tracked

    def files(self) -> tuple[Path, Path]:
        """A video of base and adapted beside each other, and a zip of each one's palette PNGs and COCO JSON."""
        if not self._tracked:
            raise UserError("there are no masks to take away yet: track first")
        return self._video, self._masks.with_suffix(".zip")

    def picture_file(self, picture_HWC: np.ndarray) -> Path:
        """A picture, RGB uint8, as a PNG file, the same for the same picture: it is never written while it is read."""
        name = hashlib.sha256(f"{picture_HWC.shape}".encode() + picture_HWC.tobytes()).hexdigest()
        path = Path(self._folder.name) / "pictures" / f"{name}.png"
        if not path.exists():
            write_atomically(path, partial(Image.fromarray(picture_HWC).save, format="PNG"))
        return path

    def experts(self, frame: int, layer: str | None, choice: str | None) -> tuple[np.ndarray | None, str]:
        """Which experts acted where on a frame.

        Args:
            frame: its number.
            layer: one of ``models.layers``; None for the mean over the layers that have places.
            choice: one of ``models.choices``, whose share is shown; None for the one of the largest share.

        Returns:
            A picture as of :func:`~src.demo.expert_maps.draw_expert_map`, None where nothing was routed; and one line about it.
        """
        material = self._known_frame(frame)
        found = self._found(frame)
        shown = {} if found is None else found.chosen
        if layer is not None:
            shown = {name: choices for name, choices in shown.items() if name == layer}
        names = next((choices.names for choices in shown.values()), [])
        if not shown or (choice is not None and choice not in names):
            return None, self._why_nothing(frame, found, bool(shown))
        about = layer or f"mean over {len(shown)} of {len(self.models.layers)} layers"
        return draw_expert_map(material.frame(frame), mean_share(shown), names, choice), f"frame {frame}: {about}"

    def _why_nothing(self, frame: int, found: Found | None, ran: bool) -> str:
        """Why there is no picture of experts."""
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
                "nothing was routed: the adapters lie in memory attention, which SAM 2 skips on prompted frames; "
                "track, and look at a later frame"
            )
        return "nothing was routed on this frame"

    def _asked_frame(self) -> int:
        """The frame that the gate decides on: the one prompted first."""
        return min(self.prompts(), default=0)

    def _decision(self) -> Decision:
        frame = self._asked_frame()
        if frame not in self._decisions:
            self._decisions[frame] = self.models.decide(self._known_frame(frame).frame(frame))
        return self._decisions[frame]

    def _used(self) -> str | None:
        """Whose adapters are on: a domain's, or without a gate simply ``on``; None if they are off."""
        if self.mode == "off":
            return None
        if self.mode == "auto":
            return self._decision().domain
        if self.models.gate is not None and self.mode == "on":
            return min(distances, key=distances.__getitem__) if (distances := self._decision().distances) else None
        return self.mode

    def _found(self, frame: int) -> Found | None:
        """What is known of a frame, computed where prompts are on it and nothing was tracked."""
        if self._tracked:
            return self._tracked[frame]
        prompts = self.prompts().get(frame)
        if prompts is None:
            return None
        if frame not in self._previews:
            assert self.material is not None, "it has prompts"
            still = DemoInput(self.material.name, [self.material.frames[frame]])
            _, predictions, chosen = next(self._run(still, {0: prompts}))
            self._previews[frame] = Found.of(predictions, chosen)
        return self._previews[frame]

    def _run(
        self, material: DemoInput, prompts: PromptsByFrame
    ) -> Iterator[tuple[np.ndarray, tuple[Prediction, Prediction], dict[str, Choices]]]:
        """Frame by frame: the frame, what base and adapted model find on it, and what experts did."""
        tracker = self.models.tracker(self._used())
        before, after = track_video(self.models.base, material, prompts), track_video(tracker, material, prompts)
        for _ in range(material.count):
            with self.models.lock, record_expert_maps(tracker.predictor) as places:
                frame, base = next(before)
                adapted = base if tracker is self.models.base else next(after)[1]
                chosen = places.take()
            yield frame, (base, adapted), chosen

    def _forget_results(self) -> None:
        self._tracked = []
        self._previews.clear()

    def _known_frame(self, frame: int) -> DemoInput:
        if self.material is None:
            raise UserError("there is no picture yet: upload one, or take a sample")
        if not 0 <= frame < self.material.count:
            raise UserError(f"there is no frame {frame}: {self.material.name} has {self.material.count}")
        return self.material

    def _of(self, frame: int, object_id: int) -> list[Mark]:
        return [mark for mark in self._marks if (mark.frame, mark.object_id) == (frame, object_id)]

    def _corners(self, frame: int, object_id: int) -> list[Mark]:
        return [mark for mark in self._of(frame, object_id) if mark.kind == "corner of a box"]

    def _half_boxes(self, frame: int) -> list[Prompt]:
        """The corners that wait for their opposites, as small boxes to be drawn."""
        assert self.material is not None
        reach = max(self.material.size) / 100
        lone = [
            corners[-1]
            for object_id in {mark.object_id for mark in self._marks}
            if len(corners := self._corners(frame, object_id)) % 2
        ]
        return [Prompt(m.object_id, box=(m.x - reach, m.y - reach, m.x + reach, m.y + reach)) for m in lone]

    @property
    def _masks(self) -> Path:
        return Path(self._folder.name) / "masks"

    @property
    def _video(self) -> Path:
        return Path(self._folder.name) / "base_and_adapted.mp4"


def _box(corners: list[Mark]) -> tuple[float, float, float, float] | None:
    if not corners:
        return None
    xs, ys = sorted(mark.x for mark in corners), sorted(mark.y for mark in corners)
    return xs[0], ys[0], xs[1], ys[1]


def _decoded(masks: dict[int, RLE]) -> dict[int, np.ndarray]:
    return {object_id: mask.decode() for object_id, mask in masks.items()}


def _compared(base: dict[int, np.ndarray], adapted: dict[int, np.ndarray]) -> Iterator[str]:
    """How alike two models' masks are, object by object."""
    for object_id, mask in base.items():
        other = adapted[object_id]
        same = "the same" if np.array_equal(mask, other) else f"IoU {region_similarity(mask, other):.2f}"
        yield f"; object {object_id}: base and adapted {same}"
