"""SAM 2 under a domain gate: what the gate sees of its images, and predictors that follow its decisions.

- The video predictor decides once a video, on the frame that is prompted first; the inference state keeps the decision.
- The image predictor decides at ``set_image``, and for each image of ``set_image_batch``.
- :class:`~src.models.sam2.streaming.StreamingTracker` decides at the first prompted frame; the memory bank keeps the
  decision.

:mod:`src.gating.switching` has the modes, and the switching of adapters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn

from ...gating import features
from ...gating.domain_gate import Decision
from ...gating.switching import AdapterSwitch, installed_switch
from ...lora.adapter import disable_adapters
from ..spec import ModelSpec, spec_of
from .inference_state import DECISION, State
from .patches import VIDEO_METHODS, rebind, unbind
from .pixels import frame_size

_signature = functools.cache(inspect.signature)


@torch.no_grad()
def gate_features(
    model: SAM2Base,
    pixels_B3SS: Tensor,
    encode: Callable[[Tensor], Sequence[Tensor]] | None = None,
    spec: ModelSpec | None = None,
) -> Tensor:
    """Return what the domain gate knows of images: mean and deviation of every channel on every level of the encoder.

    Exposure is evened out first: brightness and contrast over all pixels and channels are set to fixed values. Adapters
    and autocast are off.

    Args:
        model: with or without adapters, in eval mode; of any class where ``encode`` is given.
        pixels_B3SS: RGB in 0–1, at the model's image size.
        encode: images (B, 3, S, S), normalised, to the encoder's three feature maps (B, C, h, w), as the mask decoder
            takes them; None: as a SAM2Base does it.
        spec: whose mean and deviation of pixels the model has; None: the model's own.

    Returns:
        (B, D), float32; D is twice the channels of the three feature maps.
    """
    spec = spec_of(model) if spec is None else spec
    mean, std = features.pixel_scale(spec.pixel_mean, spec.pixel_std, pixels_B3SS.device)
    images = ((features.even_exposure(pixels_B3SS) - mean) / std).to(next(model.parameters()).dtype)
    with disable_adapters(model), torch.autocast(images.device.type, enabled=False):
        levels = encode(images) if encode is not None else model.forward_image(images)["backbone_fpn"]
    return features.channel_statistics(levels)


def to_pixels(model: SAM2Base, frame: np.ndarray) -> Tensor:
    """Return a frame, RGB uint8 (H, W, 3), at the model's image size: float32 (3, S, S) in 0–1, on the CPU."""
    return features.to_pixels(frame, frame_size(model))


def attach_gate(model: SAM2Base) -> None:
    """Let a video predictor, such as a copy of one, follow the domain gate installed on it.

    Other models, and predictors without a domain gate, stay as they are.
    """
    if isinstance(model, SAM2VideoPredictor) and installed_switch(model) is not None:
        rebind(model, VIDEO_METHODS, _run_gated)


def detach_gate(model: nn.Module) -> None:
    """Undo :func:`attach_gate`."""
    unbind(model, VIDEO_METHODS)


def _switch(model: nn.Module) -> AdapterSwitch:
    switch = installed_switch(model)
    assert switch is not None  # what is attached asks for it
    return switch


def _run_gated(predictor: SAM2VideoPredictor, name: str, *args: Any, **kwargs: Any) -> Any:
    """Run a stock method with the adapters that the decision on its inference state turns on."""
    method = getattr(type(predictor), name)
    bound = _signature(method).bind(predictor, *args, **kwargs).arguments
    state, switch = bound["inference_state"], _switch(predictor)
    if DECISION not in state and state["obj_ids"]:
        _decide_for_state(predictor, switch, state, bound["frame_idx"])
    # init_state encodes frame 0 before there is a prompt, and so a decision
    domain = state[DECISION].domain if DECISION in state else None
    with switch.active(domain):
        return method(predictor, *args, **kwargs)


def _decide_for_state(predictor: SAM2VideoPredictor, switch: AdapterSwitch, state: State, frame: int) -> None:
    """Decide once for a video, on the frame that is prompted first."""
    image = state["images"][frame].to(state["device"])
    state[DECISION] = switch.decide(predictor, image[None])[0]
    if switch.in_encoder and state[DECISION].domain is not None:
        state["cached_features"].clear()  # they were made without adapters


class GatedImages:
    """Makes an image predictor follow the domain gate installed on its model; see :func:`gate_image_predictor`.

    Attributes:
        decisions: one for each image that is set.
    """

    def __init__(self, predictor: SAM2ImagePredictor) -> None:
        self.predictor = predictor
        self.decisions: list[Decision] = []

    def set_image(self, image: Any) -> None:
        """``SAM2ImagePredictor.set_image``."""
        self.decisions = self._decide([image])
        with self._switch.active(self.decisions[0].domain):
            type(self.predictor).set_image(self.predictor, image)

    def set_image_batch(self, image_list: list[np.ndarray]) -> None:
        """``SAM2ImagePredictor.set_image_batch``; with adapters in the encoder it runs once for each choice."""
        self.decisions = self._decide(image_list)
        domains = [decision.domain for decision in self.decisions]
        features = {}
        for domain in set(domains) if self._switch.in_encoder else {None}:
            with self._switch.active(domain):
                type(self.predictor).set_image_batch(self.predictor, image_list)
            features[domain] = self.predictor._features
        if len(features) > 1:
            self.predictor._features = _pick(features, domains)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """``SAM2ImagePredictor._predict``, through which all its predictions go."""
        method = type(self.predictor)._predict
        index = _signature(method).bind(self.predictor, *args, **kwargs).arguments.get("img_idx", -1)
        with self._switch.active(self.decisions[index].domain):
            return method(self.predictor, *args, **kwargs)

    @property
    def _switch(self) -> AdapterSwitch:
        return _switch(self.predictor.model)

    def _decide(self, images: list[Any]) -> list[Decision]:
        if not self._switch.in_images:
            return [Decision(None, {})] * len(images)
        inputs_B3SS = torch.stack([self.predictor._transforms(image) for image in images])
        return self._switch.decide(self.predictor.model, inputs_B3SS.to(self.predictor.device))


def gate_image_predictor(predictor: SAM2ImagePredictor) -> None:
    """Let an image predictor follow the domain gate installed on its model, if there is one.

    Its ``gated.decisions`` then has a decision for each image that is set. A mask generator's crops are images too.
    """
    if installed_switch(predictor.model) is not None:
        predictor.gated = GatedImages(predictor)
        rebind(predictor, ("set_image", "set_image_batch", "_predict"), _run_gated_images)


def _run_gated_images(predictor: SAM2ImagePredictor, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(predictor.gated, name.lstrip("_"))(*args, **kwargs)


def _pick(features: dict[str | None, dict[str, Any]], domains: list[str | None]) -> dict[str, Any]:
    """Of each image the features that were made for its domain, laid out in memory as they were: masks depend on it."""

    def rows(maps: list[Tensor]) -> Tensor:
        picked = maps[0].clone()
        for index, level in enumerate(maps):
            picked[index] = level[index]
        return picked

    chosen = [features[domain] for domain in domains]
    levels = range(len(chosen[0]["high_res_feats"]))
    return {
        "image_embed": rows([f["image_embed"] for f in chosen]),
        "high_res_feats": [rows([f["high_res_feats"][level] for f in chosen]) for level in levels],
    }
