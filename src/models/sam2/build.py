"""The model zoo: SAM 2 built from the ``sam2`` package's own classes and configs, with strictly loaded weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sam2  # noqa: F401  (registers sam2's config folder with hydra)
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from sam2.modeling.sam2_base import SAM2Base
from torch.utils.checkpoint import checkpoint as run_checkpointed

from ...config import ModelConfig
from ...core.errors import UserError
from ...core.torch_files import read_pt
from ...lora.adapter_io import base_state_dict
from .cpu_kernels import use_fast_cpu_kernels

PIXEL_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as SAM 2 uses them
PIXEL_STD = (0.229, 0.224, 0.225)
STRIDE = 16  # pixels per token of the features that memory attention works on


@dataclass(frozen=True)
class ModelSpec:
    """A model of the zoo: a config of the ``sam2`` package, what differs from it, and the image size it is made for."""

    config: str
    image_size: int
    overrides: tuple[str, ...] = ()


_NANO = "model.image_encoder.trunk", "model.image_encoder.neck", "model.memory_attention", "model.memory_encoder"
_TRUNK, _NECK, _ATTENTION, _ENCODER = _NANO

MODEL_ZOO: dict[str, ModelSpec] = {
    # SAM 2.1's architecture in small, for trying and testing on a CPU
    "sam2_nano": ModelSpec(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        128,
        (
            f"{_TRUNK}.embed_dim=32",
            f"{_TRUNK}.stages=[1,1,2,1]",
            f"{_TRUNK}.global_att_blocks=[3]",
            f"++{_TRUNK}.window_spec=[8,4,8,4]",
            f"{_TRUNK}.window_pos_embed_bkg_spatial_size=[4,4]",
            f"++{_TRUNK}.drop_path_rate=0.0",
            f"{_NECK}.d_model=64",
            f"{_NECK}.position_encoding.num_pos_feats=64",
            f"{_NECK}.backbone_channel_list=[256,128,64,32]",
            f"{_ATTENTION}.d_model=64",
            f"{_ATTENTION}.num_layers=2",
            f"{_ATTENTION}.layer.d_model=64",
            f"{_ATTENTION}.layer.dim_feedforward=256",
            f"{_ATTENTION}.layer.dropout=0.0",
            f"{_ATTENTION}.layer.self_attention.embedding_dim=64",
            f"{_ATTENTION}.layer.self_attention.dropout=0.0",
            f"{_ATTENTION}.layer.cross_attention.embedding_dim=64",
            f"{_ATTENTION}.layer.cross_attention.kv_in_dim=32",
            f"{_ATTENTION}.layer.cross_attention.dropout=0.0",
            f"++{_ENCODER}.in_dim=64",
            f"{_ENCODER}.out_dim=32",
            f"{_ENCODER}.position_encoding.num_pos_feats=32",
            f"++{_ENCODER}.mask_downsampler.embed_dim=64",
            f"{_ENCODER}.fuser.layer.dim=64",
        ),
    ),
    "sam2.1_hiera_tiny": ModelSpec("configs/sam2.1/sam2.1_hiera_t.yaml", 1024),
    "sam2.1_hiera_small": ModelSpec("configs/sam2.1/sam2.1_hiera_s.yaml", 1024),
    "sam2.1_hiera_base_plus": ModelSpec("configs/sam2.1/sam2.1_hiera_b+.yaml", 1024),
    "sam2.1_hiera_large": ModelSpec("configs/sam2.1/sam2.1_hiera_l.yaml", 1024),
}

# what sam2.build_sam sets for its predictors, less hole filling, which needs the optional CUDA extension
_PREDICTOR_OVERRIDES = (
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
    "++model.binarize_mask_from_pts_for_mem_enc=true",
)


def image_size_of(config: ModelConfig) -> int:
    """The side, in pixels, of the square images the model sees."""
    return config.image_size or MODEL_ZOO[config.name].image_size


def config_overrides(config: ModelConfig) -> list[str]:
    """Hydra overrides that turn the zoo model's SAM 2 config into the model asked for: its parts and image size."""
    size = image_size_of(config)
    return [
        *MODEL_ZOO[config.name].overrides,
        f"model.image_size={size}",
        f"model.memory_attention.layer.self_attention.feat_sizes=[{size // STRIDE},{size // STRIDE}]",
        f"model.memory_attention.layer.cross_attention.feat_sizes=[{size // STRIDE},{size // STRIDE}]",
    ]


def build_model(config: ModelConfig, target: str = "sam2.modeling.sam2_base.SAM2Base", **arguments: Any) -> SAM2Base:
    """Build a model of the zoo on the CPU, with the config's checkpoint loaded strictly (random weights without one).

    Args:
        config: which model, which weights, which image size.
        target: the class to build, SAM2Base or one derived from it.
        arguments: further arguments of that class.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another model.
    """
    overrides = [*config_overrides(config), *_PREDICTOR_OVERRIDES]
    composed = compose(config_name=MODEL_ZOO[config.name].config, overrides=overrides)
    model_config = OmegaConf.to_container(composed.model, resolve=True)
    assert isinstance(model_config, dict)
    model_config["_target_"] = target
    model = instantiate({**model_config, **arguments})
    use_fast_cpu_kernels(model)
    if config.checkpoint is not None:
        load_base(model, config.checkpoint, config.name)
    return model


def load_base(model: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load base weights strictly: every key of the base is in the file, and every key of the file in the base.

    Args:
        model: a SAM 2 model, with adapters, which stay as they are, or without.
        path: an official ``.pt`` (``{"model": state_dict}``) or a ``.safetensors`` file; half-precision weights are
            widened.
        name: the model's name, for messages.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint, or its keys or shapes are those of another model.
    """
    weights = read_weights(path)
    expected = base_state_dict(model)
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    reshaped = [
        f"{key} is {_shape(weights[key])}, expected {_shape(expected[key])}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for what, keys in (("keys missing", missing), ("unknown keys", unexpected), ("shapes differ", reshaped))
        if keys
    ]
    if problems:
        raise UserError(f"{path} does not fit model.name {name}: {'; '.join(problems)}")
    for key, tensor in expected.items():
        tensor.copy_(weights[key])


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``.safetensors`` or official ``.pt`` file, on the CPU; nothing in the file is executed.

    Raises:
        UserError: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"model.checkpoint: {path} does not exist; checkpoints/download_ckpts.sh fetches the official files, "
            "and null stands for random weights"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or not a safetensors file: {error}") from None
    content = read_pt(path)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: not an official SAM 2 checkpoint, which holds {{'model': state_dict}}")
    return weights


def checkpoint_activations(model: SAM2Base) -> None:
    """Recompute the encoder's blocks and the memory attention's layers in the backward pass instead of keeping them."""
    for block in [*model.image_encoder.trunk.blocks, *model.memory_attention.layers]:
        block.forward = partial(run_checkpointed, block.forward, use_reentrant=False)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
