"""The domain gate in a model: what it looks at, and how its decision switches adapters in SAM 2's own predictors.

``install_gate(model, gate, mode)`` hangs a gate on a model, and every predictor made of it then decides by itself:

- the video predictor once a video, on the frame that is prompted first; the decision lies in the inference state,
- the image predictor at ``set_image``, and for each image of ``set_image_batch``,
- :class:`~src.models.sam2.streaming.StreamingTracker` at the first prompted frame; the decision lies in the memory bank.

Modes: ``auto`` lets the gate decide; ``off`` is the base model; ``on`` the nearest domain, however far; a domain's name
that domain. Where no domain is chosen, adapters are off around every computation of that video and the masks are the
base model's, bit for bit. Adapters that somebody else has switched off stay off.

Deciding takes one pass of the image encoder, without adapters, on one frame with its exposure evened out; it is not
the pass that tracking uses, since the gate is to see a frame the same way in any light. An image predictor whose
adapters all lie in memory attention, which still images do not pass through, is not asked at all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn

from ...config import GATE_MODES
from ...core.errors import UserError
from ...gating.domain_gate import GATE_FILE, Decision, DomainGate
from ...lora.adapter import MultiAdapterLinear, disable_adapters, iter_adapter_layers, iter_wrapped_linears, list_groups
from ...lora.adapter_io import base_fingerprint
from ..checkpoint import ADAPTER_FOLDER
from .build import FAMILY

Encode = Callable[[Tensor], Sequence[Tensor]]

EVEN_MEAN, EVEN_STD = 0.45, 0.2  # exposure of the frames that the gate sees
DECISION = "domain_decision"  # where an inference state keeps it

_signature = functools.cache(inspect.signature)

# the methods of a video predictor through which every computation with adapters goes
_VIDEO_METHODS = ("_get_image_feature", "_run_single_frame_inference", "_run_memory_encoder")


class Gating:
    """A gate at work in a model, made by :func:`install_gate`.

    Args:
        model: a SAM2Base, or another model with the same encoder and adapters in it.
        gate: fitted on its base.
        mode: ``auto``, ``on``, ``off`` or a domain's name.
        encode: as for :func:`gate_features`.

    Attributes:
        gate: what decides.
        mode: ``auto``, ``on``, ``off`` or a domain's name.
        in_encoder: whether the image encoder has adapters, so that its features depend on the decision.
        in_images: whether still images pass through any adapter.
    """

    def __init__(self, model: nn.Module, gate: DomainGate, mode: str, encode: Encode | None = None) -> None:
        if mode not in GATE_MODES:
            gate.check_name(mode)
        self.gate, self.mode, self._encode = gate, mode, encode
        groups = list_groups(model)
        if groups and (strangers := [domain for domain in gate.domains if domain not in groups]):
            raise UserError(
                f"the domain gate knows {', '.join(strangers)}, but the expert groups are {', '.join(groups)}; "
                "a group must be called after its domain"
            )
        self._grouped = [layer for _, layer in iter_wrapped_linears(model) if isinstance(layer, MultiAdapterLinear)]
        adapters = dict(iter_adapter_layers(model))
        self.in_encoder = any(name.startswith(("image_encoder.", "vision_encoder.")) for name in adapters)
        self.in_images = any(not name.startswith("memory_") for name in adapters)
        # a model's modules are many, and a scope is entered several times a frame
        self._adapters = list(adapters.values())

    def decide(self, model: nn.Module, images_B3SS: Tensor) -> list[Decision]:
        """One decision an image; the images are normalised, as the model's own encoder takes them."""
        if self.mode == "off":
            return [Decision(None, {})] * len(images_B3SS)
        if self.mode in self.gate.domains:
            return [Decision(self.mode, {})] * len(images_B3SS)
        mean, std = _pixel_scale(images_B3SS.device)
        features_BD = gate_features(model, images_B3SS.float() * std + mean, self._encode)
        return [self.gate.decide(f) if self.mode == "auto" else self.gate.decide_nearest(f) for f in features_BD]

    @contextmanager
    def active(self, domain: str | None) -> Iterator[None]:
        """Compute with this domain's adapters, its expert group where there are groups, or with none of them."""
        groups = [layer.active_adapter for layer in self._grouped]
        switches = [adapter.enabled for adapter in self._adapters]
        for layer in self._grouped:
            layer.active_adapter = domain
        if domain is None:
            for adapter in self._adapters:
                adapter.enabled = False
        try:
            yield
        finally:
            for layer, active in zip(self._grouped, groups, strict=True):
                layer.active_adapter = active
            for adapter, enabled in zip(self._adapters, switches, strict=True):
                adapter.enabled = enabled


@torch.no_grad()
def gate_features(model: SAM2Base, pixels_B3SS: Tensor, encode: Encode | None = None) -> Tensor:
    """What the gate knows of images: mean and deviation of every channel on every level of the base's encoder.

    Exposure is evened out first: brightness and contrast over all pixels and channels are set to fixed values. Adapters
    and autocast are off.

    Args:
        model: with or without adapters, in eval mode; of any class where ``encode`` is given.
        pixels_B3SS: RGB in 0–1, at the model's image size.
        encode: images (B, 3, S, S), normalised, to the encoder's three feature maps (B, C, h, w), as the mask decoder
            takes them; None: as a SAM2Base does it.

    Returns:
        (B, D), float32; D is twice the channels of the three feature maps.
    """
    center = pixels_B3SS.mean(dim=(1, 2, 3), keepdim=True)
    contrast = pixels_B3SS.std(dim=(1, 2, 3), keepdim=True) + 1e-3
    even = ((pixels_B3SS - center) / contrast * EVEN_STD + EVEN_MEAN).clamp(0, 1)
    mean, std = _pixel_scale(even.device)
    images = ((even - mean) / std).to(next(model.parameters()).dtype)
    with disable_adapters(model), torch.autocast(images.device.type, enabled=False):
        levels = encode(images) if encode is not None else model.forward_image(images)["backbone_fpn"]
    statistics = [f(level.float(), dim=(2, 3)) for level in levels for f in (torch.mean, torch.std)]
    return torch.cat(statistics, dim=1)


def to_pixels(model: SAM2Base, frame: np.ndarray) -> Tensor:
    """A frame, RGB uint8 (H, W, 3), at the model's image size: float32 (3, S, S) in 0–1, on the CPU."""
    resized = np.asarray(Image.fromarray(frame).resize((model.image_size, model.image_size)))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255


def decide_for_frame(model: SAM2Base, gate: DomainGate, frame: np.ndarray) -> Decision:
    """What the gate says of a frame, RGB uint8 (H, W, 3); the model is in eval mode."""
    device = next(model.parameters()).device
    return gate.decide(gate_features(model, to_pixels(model, frame)[None].to(device))[0])


def install_gate(model: SAM2Base, gate: DomainGate, mode: str = "auto") -> None:
    """Let a gate decide for all predictors made of this model from now on, and for the model if it is one.

    Adapters are in place already. The model keeps its class, weights and state dict; the gate is its ``domain_gate``
    attribute. Installing again replaces the gate.

    Args:
        model: any SAM2Base.
        gate: fitted on this model's base.
        mode: ``auto``, ``on``, ``off`` or the name of one of the gate's domains.

    Raises:
        UserError: the mode is none of these.
    """
    model.domain_gate = Gating(model, gate, mode)
    gate_video_methods(model)


def remove_gate(model: SAM2Base) -> None:
    """Undo :func:`install_gate`; without a gate nothing happens."""
    for name in ("domain_gate", *_VIDEO_METHODS):
        vars(model).pop(name, None)


def gating_of(model: SAM2Base) -> Gating | None:
    """The gate installed on a model, None without one."""
    return getattr(model, "domain_gate", None)


@contextmanager
def gated(model: SAM2Base, gate: DomainGate, mode: str = "auto") -> Iterator[None]:
    """Install a gate for a while; the one before, if any, comes back afterwards."""
    before = gating_of(model)
    install_gate(model, gate, mode)
    try:
        yield
    finally:
        remove_gate(model)
        if before is not None:
            model.domain_gate = before
            gate_video_methods(model)


def saved_gate(base: SAM2Base, trained: str | Path | None) -> DomainGate | None:
    """The gate of an adapter folder, or of the one beside a run's checkpoint; None if there is none.

    Raises:
        UserError: it is damaged, or another base's.
    """
    if trained is None:
        return None
    place = Path(trained)
    folder = place if place.is_dir() else place.resolve().parents[1] / ADAPTER_FOLDER
    return DomainGate.beside(folder, base_fingerprint(base))


def install_saved_gate(model: SAM2Base, adapter: str | Path | None, mode: str = "auto") -> None:
    """Install the gate that lies in an adapter folder.

    Without one, or without an adapter folder, ``auto`` and ``on`` leave the adapters on, and ``off`` puts them off.

    Raises:
        UserError: the gate is damaged or another base's, or the mode names a domain that there is no gate for.
    """
    if (gate := gate_for(adapter, base_fingerprint(model), mode)) is not None:
        install_gate(model, gate, mode)


def gate_for(adapter: str | Path | None, fingerprint: str, mode: str) -> DomainGate | None:
    """The gate that lies in an adapter folder; without one, for mode ``off`` one that knows nothing, else None.

    Args:
        adapter: the folder, if there is one.
        fingerprint: of the base that the gate is to judge for.
        mode: ``auto``, ``on``, ``off`` or a domain's name.

    Raises:
        UserError: as :func:`install_saved_gate`.
    """
    if adapter is not None and (Path(adapter) / GATE_FILE).is_file():
        return DomainGate.load(adapter, fingerprint)
    if mode not in GATE_MODES:
        raise UserError(
            f"gate '{mode}': {adapter or 'the model'} has no {GATE_FILE}, so there are no domains to choose"
        )
    return DomainGate(fingerprint) if mode == "off" else None


def gate_video_methods(model: SAM2Base) -> None:
    """Let a video predictor, such as a copy of one, follow the gate installed on it; other models stay as they are."""
    if isinstance(model, SAM2VideoPredictor) and gating_of(model) is not None:
        for name in _VIDEO_METHODS:
            setattr(model, name, functools.partial(_run_gated, model, name))


def _run_gated(predictor: SAM2VideoPredictor, name: str, *args: Any, **kwargs: Any) -> Any:
    """Run a stock method with the adapters that the decision on its inference state turns on."""
    method = getattr(type(predictor), name)
    bound = _signature(method).bind(predictor, *args, **kwargs).arguments
    state, gating = bound["inference_state"], predictor.domain_gate
    if DECISION not in state and state["obj_ids"]:
        _decide_for_state(predictor, state, bound["frame_idx"])
    # init_state encodes frame 0 before there is a prompt, and so a decision
    domain = state[DECISION].domain if DECISION in state else None
    with gating.active(domain):
        return method(predictor, *args, **kwargs)


def _decide_for_state(predictor: SAM2VideoPredictor, state: dict[str, Any], frame: int) -> None:
    """Decide once for a video, on the frame that is prompted first."""
    gating: Gating = predictor.domain_gate
    image = state["images"][frame].to(state["device"])
    state[DECISION] = gating.decide(predictor, image[None])[0]
    if gating.in_encoder and state[DECISION].domain is not None:
        state["cached_features"].clear()  # they were made without adapters


class GatedImages:
    """Makes an image predictor follow the gate installed on its model; see :func:`gate_image_predictor`.

    Attributes:
        decisions: one for each image that is set.
    """

    def __init__(self, predictor: SAM2ImagePredictor) -> None:
        self.predictor = predictor
        self.decisions: list[Decision] = []

    def set_image(self, image: Any) -> None:
        """``SAM2ImagePredictor.set_image``."""
        self.decisions = self._decide([image])
        with self._gating.active(self.decisions[0].domain):
            type(self.predictor).set_image(self.predictor, image)

    def set_image_batch(self, image_list: list[np.ndarray]) -> None:
        """``SAM2ImagePredictor.set_image_batch``; with adapters in the encoder it runs once for each choice."""
        self.decisions = self._decide(image_list)
        domains = [decision.domain for decision in self.decisions]
        features = {}
        for domain in set(domains) if self._gating.in_encoder else {None}:
            with self._gating.active(domain):
                type(self.predictor).set_image_batch(self.predictor, image_list)
            features[domain] = self.predictor._features
        if len(features) > 1:
            self.predictor._features = _pick(features, domains)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """``SAM2ImagePredictor._predict``, through which all its predictions go."""
        method = type(self.predictor)._predict
        index = _signature(method).bind(self.predictor, *args, **kwargs).arguments.get("img_idx", -1)
        with self._gating.active(self.decisions[index].domain):
            return method(self.predictor, *args, **kwargs)

    @property
    def _gating(self) -> Gating:
        return self.predictor.model.domain_gate

    def _decide(self, images: list[Any]) -> list[Decision]:
        if not self._gating.in_images:
            return [Decision(None, {})] * len(images)
        inputs_B3SS = torch.stack([self.predictor._transforms(image) for image in images])
        return self._gating.decide(self.predictor.model, inputs_B3SS.to(self.predictor.device))


def gate_image_predictor(predictor: SAM2ImagePredictor) -> None:
    """Let an image predictor follow the gate installed on its model, if there is one.

    Its ``gated.decisions`` then has a decision for each image that is set. A mask generator's crops are images too.
    """
    if gating_of(predictor.model) is not None:
        gated_images = GatedImages(predictor)
        predictor.gated = gated_images
        predictor.set_image = gated_images.set_image
        predictor.set_image_batch = gated_images.set_image_batch
        predictor._predict = gated_images.predict


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


def _pixel_scale(device: torch.device) -> tuple[Tensor, Tensor]:
    """SAM 2's mean and deviation of pixels, each (3, 1, 1)."""
    mean, std = (torch.tensor(values, device=device) for values in (FAMILY.pixel_mean, FAMILY.pixel_std))
    return mean[:, None, None], std[:, None, None]
