"""The models that ship: one spec each."""

from __future__ import annotations

from dataclasses import replace

from .spec import ModelSpec, WeightsLicence, register_model

DEFAULT_MODEL = "sam2_nano"
"""What ``model.name`` is where a config does not say it: small, with bundled weights."""

APACHE_2 = WeightsLicence("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", hub_id="apache-2.0")


def _sam2(name: str, config: str, gpu_memory: int | None = None) -> ModelSpec:
    """Return the spec of an official SAM 2.1, which a config of the ``sam2`` package describes."""
    return ModelSpec(
        name=name,
        task="tracking",
        room=".sam2.room",
        image_size=1024,
        stride=32,
        pixel_mean=(0.485, 0.456, 0.406),  # ImageNet's
        pixel_std=(0.229, 0.224, 0.225),
        default_targets=tuple(f"memory_attention.*.{p}_proj" for p in ("q", "k", "v", "out")),
        encoder=("image_encoder.",),
        memory=("memory_attention.", "memory_encoder."),
        decoder=("sam_mask_decoder.",),
        checkpointed_blocks=("image_encoder.trunk.blocks.*", "memory_attention.layers.*"),
        model_class="sam2.modeling.sam2_base.SAM2Base",
        encoder_strides=(4, 8, 16, 32),
        memory_stride=16,
        checkpoint=f"checkpoints/{name}.pt",
        recipe=f"{name}_mope.yaml",
        gpu_memory=gpu_memory,
        hub=f"facebook/{name.replace('_', '-')}",
        licence=APACHE_2,
        requires=("sam2",),
        details={"config": f"configs/sam2.1/{config}"},
    )


_TINY = _sam2("sam2.1_hiera_tiny", "sam2.1_hiera_t.yaml", gpu_memory=0)
_NANO = replace(
    _TINY,
    name=DEFAULT_MODEL,
    image_size=128,
    checkpoint="checkpoints/sam2_nano.safetensors",
    recipe="mope_memory.yaml",
    gpu_memory=None,
    hub=None,
    source_world="source",
    details={**_TINY.details, "differences": "sam2_nano.yaml"},  # in src/models/sam2/configs
)
SAM_LICENCE = WeightsLicence(
    "SAM License", "https://github.com/facebookresearch/sam3/blob/main/LICENSE", covers_derivatives=True
)
_SAM3_TRACKER = replace(
    _TINY,
    name="sam3_tracker",
    room=".sam3_tracker.room",
    image_size=1008,
    stride=14,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    checkpointed_blocks=("image_encoder.backbone.layers.*", "memory_attention.layers.*"),
    model_class="",
    encoder_strides=(14,),
    memory_stride=14,
    checkpoint="checkpoints/sam3",
    recipe="sam3_tracker_mope.yaml",
    gpu_memory=None,
    hub="facebook/sam3",
    licence=SAM_LICENCE,
    requires=("transformers", "sam2"),
)
_SAM3_PARTS = ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder")
"""Parts of SAM 3 in which short names select layers: neither its image encoder nor its text encoder."""

_SAM3_NAMES = {
    **{name: f"*.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    "out_proj": "*.o_proj", "linear1": "*.mlp.fc1", "linear2": "*.mlp.fc2", "fc1": "*.mlp.fc1", "fc2": "*.mlp.fc2",
}  # fmt: skip
"""Short names, those of Meta's code among them, and what they are called in transformers."""

_SAM3 = ModelSpec(
    name="sam3",
    task="concepts",
    room=".sam3.room",
    image_size=1008,
    stride=14,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    default_targets=("detr_encoder.*_proj", "detr_decoder.*_proj"),
    target_aliases={
        **{
            name: tuple(f"{part}.{layer}" for part in _SAM3_PARTS if "mlp" not in layer or part != "mask_decoder")
            for name, layer in _SAM3_NAMES.items()
        },
        "all": ("all", "!text_encoder.text_projection"),  # which the model never uses
    },
    encoder=("vision_encoder.",),
    memory=(),
    decoder=("detr_decoder.", "mask_decoder."),
    checkpointed_blocks=("vision_encoder.backbone.layers.*", "detr_encoder.layers.*", "detr_decoder.layers.*"),
    model_class="transformers.models.sam3.modeling_sam3.Sam3Model",
    encoder_strides=(14,),
    checkpoint="checkpoints/sam3",
    hub="facebook/sam3",
    licence=SAM_LICENCE,
    requires=("transformers",),
)
_SAM3_NANO = replace(
    _SAM3,
    name="sam3_nano",
    image_size=168,
    checkpoint="checkpoints/sam3_nano",
    hub=None,
    licence=APACHE_2,
    source_world="words",
)
for _spec in (
    _NANO,
    _TINY,
    _sam2("sam2.1_hiera_small", "sam2.1_hiera_s.yaml", gpu_memory=16),
    _sam2("sam2.1_hiera_base_plus", "sam2.1_hiera_b+.yaml", gpu_memory=24),
    _sam2("sam2.1_hiera_large", "sam2.1_hiera_l.yaml"),
    _SAM3_TRACKER,
    _SAM3,
    _SAM3_NANO,
):
    register_model(_spec)
