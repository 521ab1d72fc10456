"""What a stream's future depends on, as plain data: the memories that attention can still reach, object by object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.files import write_atomically
from ...core.torch_files import read_pt, save_pt
from ...gating.domain_gate import Decision

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Memory:
    """What is kept of one object on one frame.

    Attributes:
        pointer: the object pointer, (1, D).
        features: the memory encoder's output, (1, C, h, w), bfloat16 as the stock predictor stores it; None where only
            the pointer can still be reached.
        logits: the mask at the decoder's size, float32 (1, 1, S/4, S/4); kept on the last frame only, where further
            prompts refine it.
        score: logit that the object is to be seen on the frame, (1, 1); kept on the last frame only.
    """

    pointer: Tensor
    features: Tensor | None
    logits: Tensor | None = None
    score: Tensor | None = None


@dataclass(frozen=True)
class ObjectMemory:
    """The memories of one object.

    Attributes:
        prompted: frame number → memory, of the frames with a prompt for it.
        recent: the same of the last frames without one.
        tracked: the last frame it was tracked on, -1 if none: prompts there are corrections.
    """

    prompted: dict[int, Memory] = field(default_factory=dict)
    recent: dict[int, Memory] = field(default_factory=dict)
    tracked: int = -1


@dataclass(frozen=True)
class MemoryBank:
    """All that a stream's future depends on.

    Attributes:
        frame: number of the last frame seen, from 0; -1 at the start.
        size: (H, W) of the frames; None until one was looked at.
        objects: object id → its memories, in the order in which objects were added.
        position: the memories' positional encoding, (1, C, h, w), the same for all; None before the first memory.
        num_frames: see :meth:`~src.models.sam2.streaming.StreamingTracker.start`.
        decision: the domain gate's, None until it has decided (or where there is no gate).
    """

    frame: int = -1
    size: tuple[int, int] | None = None
    objects: dict[int, ObjectMemory] = field(default_factory=dict)
    position: Tensor | None = None
    num_frames: int | None = None
    decision: Decision | None = None

    def forget(self, object_id: int) -> MemoryBank:
        """Return the bank without an object; prompts add it again. Raises UserError where it is not in the bank."""
        self._memories_of(object_id)
        return replace(self, objects={key: o for key, o in self.objects.items() if key != object_id})

    def drop(self, frame: int, object_id: int | None = None) -> MemoryBank:
        """Return the bank without what is remembered of a frame, such as a bad mask that would spread.

        Args:
            frame: its number.
            object_id: whose memory; None: that of all objects.

        Raises:
            UserError: nothing is remembered of the frame, or an object has no other prompted frame, without which it
                cannot be tracked.
        """
        chosen = self.objects if object_id is None else {object_id: self._memories_of(object_id)}
        if not any(frame in o.prompted or frame in o.recent for o in chosen.values()):
            raise UserError(
                f"nothing is remembered of frame {frame}; what is, stands in prompted and recent of bank.objects",
                "memory-bank.no-memory",
            )
        only = [key for key, o in chosen.items() if list(o.prompted) == [frame]]
        if only:
            raise UserError(
                f"frame {frame} is all that object {only[0]} was prompted on; prompt it on another, or forget it",
                "memory-bank.last-prompt",
            )
        changed = {
            key: replace(
                o,
                prompted={t: memory for t, memory in o.prompted.items() if t != frame},
                recent={t: memory for t, memory in o.recent.items() if t != frame},
            )
            for key, o in chosen.items()
        }
        return replace(self, objects={**self.objects, **changed})

    def _memories_of(self, object_id: int) -> ObjectMemory:
        if object_id not in self.objects:
            known = ", ".join(map(str, self.objects)) or "none"
            raise UserError(f"object {object_id} is not in the bank; there are: {known}", "memory-bank.no-object")
        return self.objects[object_id]

    def save(self, path: str | Path) -> None:
        """Write the bank whole or not at all, as tensors and numbers only. Raises UserError if it cannot be written."""
        objects = {
            object_id: {
                "prompted": {t: vars(memory) for t, memory in o.prompted.items()},
                "recent": {t: vars(memory) for t, memory in o.recent.items()},
                "tracked": o.tracked,
            }
            for object_id, o in self.objects.items()
        }
        decision = None if self.decision is None else vars(self.decision)
        bank = {**vars(self), "objects": objects, "decision": decision}
        content = {"format_version": FORMAT_VERSION, "bank": bank}
        write_atomically(Path(path), partial(save_pt, content))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> MemoryBank:
        """Read what :meth:`save` wrote onto a device; nothing in the file is executed.

        Raises:
            UserError: the file is missing, damaged, or no memory bank.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such memory bank", "memory-bank.missing")
        content = read_pt(Path(path), device)
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION or "bank" not in content:
            raise UserError(f"{path}: not a memory bank of this version", "memory-bank.other-format")
        fields = content["bank"]
        objects = {
            object_id: ObjectMemory(
                {t: Memory(**memory) for t, memory in o["prompted"].items()},
                {t: Memory(**memory) for t, memory in o["recent"].items()},
                o["tracked"],
            )
            for object_id, o in fields["objects"].items()
        }
        decision = None if fields["decision"] is None else Decision(**fields["decision"])
        return cls(**{**fields, "objects": objects, "decision": decision})
