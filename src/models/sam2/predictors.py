"""SAM 2's builders and predictors with adapters in place: whoever uses SAM 2 keeps their code.

The models and predictors are stock classes of the ``sam2`` package, built by its own builders, but for parts that give
the same numbers in less time (:mod:`src.models.sam2.cpu_kernels`). With untrained adapters, or with adapters switched
off (:func:`src.lora.adapter.disable_adapters`), their masks are stock SAM 2's bit for bit.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import sam2
import torch
from hydra.errors import MissingConfigException
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.build_sam import build_sam2, build_sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from ...config import LoraConfig, load_config
from ...core.device import pick_device
from ...core.errors import UserError
from ...core.shipped import find_config
from ...gating.switching import install_saved_gate
from ...lora.adapter import iter_adapter_layers
from ...lora.injection import apply_method, freeze_base
from ..checkpoint import load_summary, load_trained
from ..spec import model_spec, spec_of
from .build import load_base, sam2_config
from .cpu_kernels import use_fast_cpu_kernels
from .gate_hooks import gate_image_predictor
from .moe_attention import name_moe_attentions
from .patches import set_feature_sizes, set_frames
from .pixels import FAMILY, frame_size

logger = logging.getLogger(__name__)

MOE_CONFIG = "sam2.1_hiera_b+_moe.yaml"
"""What the builders build where no config is named: SAM 2.1 base plus with experts, and no base weights."""

Mode = Literal["eval", "train"]
Model = TypeVar("Model", bound=SAM2Base)


def build_sam2_moe(
    config_file: str | Path = MOE_CONFIG,
    ckpt_path: str | Path | None = None,
    device: str | torch.device = "auto",
    mode: Mode = "eval",
    *,
    adapter: str | Path | None = None,
    lora: LoraConfig | None = None,
    gate: str = "auto",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
) -> SAM2Base:
    """``sam2.build_sam.build_sam2`` with adapters in place, for :func:`image_predictor` or for training.

    Base weights load strictly, and a log message counts the adapter keys that are new beside them. Attention whose four
    projections have experts is a :class:`~src.models.sam2.moe_attention.MoERoPEAttention`.

    Args:
        config_file: a run's YAML, which says which model, base weights, image size and adapters; or the name of a
            config of the ``sam2`` package, such as ``configs/sam2.1/sam2.1_hiera_b+.yaml``, then with the default
            adapters (10 experts of rank 4, 2 per token, in memory attention; :class:`~src.config.LoraConfig`).
        ckpt_path: base weights, an official ``.pt`` or safetensors; None takes the YAML's ``model.checkpoint``, and
            without one random weights (with a YAML those that its run began with).
        device: ``auto`` is CUDA where there is one, else the CPU.
        mode: ``train`` leaves the model in training mode, ``eval`` in evaluation mode; in both exactly the adapters ask
            for gradients (with ``lora.method: full`` all weights).
        adapter: an adapter folder or a run's checkpoint to load, with the config of its adapters. None: untrained
            adapters.
        lora: which adapters, in place of the YAML's or the default ones; not together with ``adapter``. None with a
            SAM 2 config that has adapters in it (:class:`~src.models.sam2.moe_attention.MoERoPEAttention`) keeps those.
        gate: whether adapters are on: ``auto``, the domain gate in the adapter folder decides for each video or image
            (:mod:`src.gating.switching`; without one they are on); ``on``; ``off``; or the name of one of its domains.
        hydra_overrides_extra: as for stock SAM 2, such as ``["model.image_size=512"]``.
        apply_postprocessing: as for stock SAM 2.

    Raises:
        UserError: there is no such config, or weights or adapters are missing, damaged or of another model.
        ValueError: another mode, adapters named twice, or injected where the config has some already.
    """
    return _build(
        build_sam2, config_file, ckpt_path, device, mode, adapter, lora, gate, hydra_overrides_extra,
        apply_postprocessing=apply_postprocessing,
    )  # fmt: skip


def build_sam2_video_predictor_moe(
    config_file: str | Path = MOE_CONFIG,
    ckpt_path: str | Path | None = None,
    device: str | torch.device = "auto",
    mode: Mode = "eval",
    *,
    adapter: str | Path | None = None,
    lora: LoraConfig | None = None,
    gate: str = "auto",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
) -> SAM2VideoPredictor:
    """``sam2.build_sam.build_sam2_video_predictor`` with adapters in place; see :func:`build_sam2_moe`.

    ``apply_postprocessing`` asks for hole filling too, as in stock SAM 2, which leaves it out with a warning where its
    CUDA extension is not installed. ``vos_optimized`` gives a ``SAM2VideoPredictorVOS``, compiled with its adapters
    when it first runs; a compiled model's routing cannot be recorded.
    """
    return _build(
        build_sam2_video_predictor, config_file, ckpt_path, device, mode, adapter, lora, gate, hydra_overrides_extra,
        apply_postprocessing=apply_postprocessing, vos_optimized=vos_optimized,
    )  # fmt: skip


def image_predictor(model: SAM2Base, **options: Any) -> SAM2ImagePredictor:
    """A stock SAM2ImagePredictor that works at the model's image size, whatever it is, and follows its domain gate.

    Args:
        model: with or without adapters.
        options: further arguments of SAM2ImagePredictor.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # how SAM 2 resizes
        return _at_image_size(SAM2ImagePredictor(model, **options))


def automatic_mask_generator(model: SAM2Base, **options: Any) -> SAM2AutomaticMaskGenerator:
    """A stock SAM2AutomaticMaskGenerator that works at the model's image size; ``options`` are its own arguments."""
    generator = SAM2AutomaticMaskGenerator(model, **options)
    _at_image_size(generator.predictor)
    return generator


def _at_image_size(predictor: SAM2ImagePredictor) -> SAM2ImagePredictor:
    model, spec = predictor.model, spec_of(predictor.model)
    set_feature_sizes(predictor, model.image_size)
    if (spec.pixel_mean, spec.pixel_std) != (FAMILY.pixel_mean, FAMILY.pixel_std):
        set_frames(predictor, frame_size(model), spec.pixel_mean, spec.pixel_std)
    gate_image_predictor(predictor)
    return predictor


def _build(
    build: Callable[..., Model],
    config_file: str | Path,
    ckpt_path: str | Path | None,
    device: str | torch.device,
    mode: Mode,
    adapter: str | Path | None,
    lora: LoraConfig | None,
    gate: str,
    hydra_overrides_extra: Sequence[str],
    **options: Any,
) -> Model:
    """Build a stock model on the CPU, load its base, put adapters in, and move it to the device."""
    if mode not in ("eval", "train"):
        raise ValueError(f"mode must be 'eval' or 'train', not {mode!r}")
    if adapter is not None and lora is not None:
        raise ValueError("give adapter or lora, not both: an adapter file has the config of its adapters")
    name, overrides, seed = str(config_file), list(hydra_overrides_extra), None
    known = None
    if find_config(config_file).is_file():
        config = load_config(config_file)
        if ckpt_path is not None:
            config.model.checkpoint = str(ckpt_path)
        known = config.model.name
        name = sam2_config(known)
        overrides = [*_room(known).config_overrides(config.model), *overrides]
        ckpt_path, seed = config.model.checkpoint, config.training.seed
        lora = lora or config.lora
    # The CPU's generator only, and put back afterwards: a run without a checkpoint began from this seed's weights.
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            model: Model = build(name, device="cpu", hydra_overrides_extra=overrides, **options)
        except MissingConfigException:
            raise UserError(
                f"{name}: neither a YAML file here nor a config of sam2: {_stock_configs()}", "config.missing"
            ) from None
    use_fast_cpu_kernels(model)
    if known is not None:
        _room(known).complete(model, known)
    if ckpt_path is not None:
        load = load_base if known is None else _room(known).load_base
        load(model, ckpt_path, known or name)
    _put_adapters(model, adapter, lora)
    name_moe_attentions(model)
    install_saved_gate(model, adapter, gate)
    logger.info(load_summary(model, ckpt_path, adapter))
    model.to(pick_device(str(device))).train(mode == "train")
    return model


def _room(name: str) -> Any:
    """Return the room of a model of SAM 2's classes, which has more functions than others have."""
    return model_spec(name).load()


def _put_adapters(model: SAM2Base, adapter: str | Path | None, lora: LoraConfig | None) -> None:
    """Inject a file's adapters, or untrained ones by ``lora``; with neither, keep the model's or inject the default."""
    in_config = any(iter_adapter_layers(model))
    if adapter is not None:
        load_trained(model, adapter)
    elif lora is not None or not in_config:
        apply_method(model, lora or LoraConfig(), spec_of(model).decoder)
    if in_config:
        freeze_base(model)


def _stock_configs() -> str:
    folder = Path(sam2.__path__[0])
    files = [*folder.glob("configs/sam2/*.yaml"), *folder.glob("configs/sam2.1/*.yaml")]
    return ", ".join(sorted(path.relative_to(folder).as_posix() for path in files))
