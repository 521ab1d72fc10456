"""Every place where this room reaches into SAM 2, its training package or torch: what is touched, and why.

All class swaps, replaced globals, rebound methods and function overrides of the room are made by the functions here.
:data:`TOUCHED` lists the private or replaced names that they and other files of the room depend on. They were seen with
``sam2`` 1.1.0, to which the project is pinned, torch 2.5 to 2.15 and transformers 5.20 to 5.23.
``tests/models/sam2/test_patches.py`` fails when a name is gone or what it stands for has changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sam2.sam2_video_predictor
import training.model.sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms import Normalize, Resize

TOUCHED: Mapping[str, str] = {
    # replaced for a while
    "sam2.sam2_video_predictor:tqdm": "draws a bar for every video, among the bars of training and evaluation",
    "sam2.sam2_video_predictor:load_video_frames": "has SAM 2's mean and deviation of pixels written into it",
    "training.model.sam2:sample_box_points": "draws an object's box from the batch's generator, not from its clip's",
    "training.model.sam2:get_next_point": "draws an object's click from the batch's generator, not from its clip's",
    # rebound, so that adapters are on or off as a domain gate has decided
    "sam2.sam2_video_predictor:SAM2VideoPredictor._get_image_feature": "encodes frames with adapters",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._run_single_frame_inference": "prompts and tracks with adapters",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._run_memory_encoder": "encodes prompted frames with adapters",
    "sam2.sam2_image_predictor:SAM2ImagePredictor.set_image": "encodes an image with adapters",
    "sam2.sam2_image_predictor:SAM2ImagePredictor.set_image_batch": "encodes images with adapters",
    "sam2.sam2_image_predictor:SAM2ImagePredictor._predict": "all predictions of images go through it",
    # rebound for SAM 3's tracker
    "sam2.modeling.sam2_base:SAM2Base._forward_sam_heads": "brings masks to memory's size directly, not by the frame's",
    "sam2.sam2_video_predictor:SAM2VideoPredictor.propagate_in_video_preflight": "does so with prompted frames' masks",
    # a class of ours takes their place, with the same weights and names
    "sam2.modeling.position_encoding:PositionEmbeddingSine.forward": "copies positions for each frame",
    "sam2.modeling.backbones.hieradet:Hiera._get_pos_embed": "makes the same positions for each frame",
    "sam2.modeling.sam.transformer:RoPEAttention.forward": "draws dropout by a slow generator on a CPU",
    # SAM2Base becomes one, with the attributes that its constructor sets beside SAM2Base's
    "sam2.sam2_video_predictor:SAM2VideoPredictor.__init__": "builds a model of its own; ours shares the trained one",
    # private, called or read
    "sam2.sam2_video_predictor:SAM2VideoPredictor.init_state": "its dictionary is made for frames of any source",
    "sam2.sam2_video_predictor:SAM2VideoPredictor.propagate_in_video": "reads and fills that dictionary",
    "sam2.sam2_video_predictor:SAM2VideoPredictor._get_orig_video_res_output": "scales mask logits to the frame's size",
    "sam2.sam2_image_predictor:SAM2ImagePredictor.__init__": "has the feature maps' sides for 1024 px written into it",
    "sam2.utils.transforms:SAM2Transforms.__init__": "has SAM 2's mean and deviation of pixels written into it",
    "sam2.modeling.sam.prompt_encoder:PromptEncoder._embed_points": "adds half a pixel, which a frame's may not be",
    "sam2.modeling.sam2_base:SAM2Base._prepare_memory_conditioned_features": "decides which memories can be reached",
    "training.model.sam2:SAM2Train.prepare_prompt_inputs": "draws prompts among all frames, annotated or not",
    "training.model.sam2:SAM2Train.track_step": "encodes a last frame that nothing looks at",
    "training.loss_fns:MultiStepMultiMasksAndIous._forward": "the loss of a frame, of annotated objects here",
}
"""Module and name → why it is touched."""

VIDEO_METHODS = ("_get_image_feature", "_run_single_frame_inference", "_run_memory_encoder")
"""Methods of a video predictor through which every computation with adapters goes."""

Object = TypeVar("Object")


def take_class(instance: Any, kind: type[Object]) -> Object:
    """Make an object an instance of another class, which has the same attributes."""
    instance.__class__ = kind
    assert isinstance(instance, kind)
    return instance


def take_classes(model: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Make modules instances of other classes: class now → class then; modules of other classes stay as they are."""
    for module in model.modules():
        if type(module) in classes:
            take_class(module, classes[type(module)])


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Silence the bar that the stock video predictor draws."""
    with _replaced(sam2.sam2_video_predictor, tqdm=lambda iterable, **_: iterable):
        yield


@contextmanager
def frames_loaded(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Iterator[None]:
    """Let ``init_state`` load frames of a size, with a mean and deviation taken out, instead of SAM 2's own."""
    module = sam2.sam2_video_predictor
    load, own = module.load_video_frames, {"image_size": side, "img_mean": mean, "img_std": std}
    with _replaced(module, load_video_frames=lambda **options: load(**{**options, **own})):
        yield


Draw = Callable[..., Any]


@contextmanager
def prompts_drawn(box: Callable[[Draw], Draw], point: Callable[[Draw], Draw]) -> Iterator[None]:
    """Let SAM2Train draw boxes and clicks by what ``box`` and ``point`` make of its own functions."""
    module = training.model.sam2
    own_box, own_point = module.sample_box_points, module.get_next_point
    with _replaced(module, sample_box_points=box(own_box), get_next_point=point(own_point)):
        yield


@contextmanager
def _replaced(module: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def rebind(instance: Any, names: Sequence[str], run: Callable[..., Any]) -> None:
    """Let methods of one object go through ``run(instance, name, *args, **kwargs)``, which may call the class's own."""
    for name in names:
        setattr(instance, name, functools.partial(run, instance, name))


def unbind(instance: Any, names: Sequence[str]) -> None:
    """Undo :func:`rebind`."""
    for name in names:
        vars(instance).pop(name, None)


def set_feature_sizes(predictor: SAM2ImagePredictor, image_size: int) -> None:
    """Set the sides of the three feature maps, which SAM 2 has for 1024 px: image side / 4, / 8 and / 16."""
    predictor._bb_feat_sizes = [(image_size // stride, image_size // stride) for stride in (4, 8, 16)]


def set_frames(predictor: SAM2ImagePredictor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Set the side of the images that the encoder takes, and their mean and deviation, which SAM 2 has written in."""
    predictor._transforms.transforms = nn.Sequential(Resize((side, side)), Normalize(mean, std))


class FunctionOverride(TorchFunctionMode):
    """Inside, calls of a torch function that ``applies(args, kwargs)`` are calls of another.

    A mode is the only way into a call that SAM 2 makes by the function's name in torch's own module.
    """

    def __init__(
        self, function: Callable[..., Any], other: Callable[..., Any], applies: Callable[[Any, Any], bool]
    ) -> None:
        super().__init__()
        self._function, self._other, self._applies = function, other, applies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is self._function and self._applies(args, kwargs):
            return self._other(*args, **kwargs)
        return func(*args, **kwargs)
