"""A tiny SAM 3 with random weights, as transformers writes it: for tests of its tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Config, Sam3TrackerVideoConfig, Sam3TrackerVideoModel, Sam3VideoConfig, Sam3VideoModel

SIDE = 56  # of its own frames: 4 × 4 tokens of 14 pixels
WIDTH = 128  # the memories' 64 channels, which transformers has written into it, must be fewer


def vision_config(side: int = SIDE) -> dict[str, Any]:
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": side, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }  # fmt: skip
    return {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": WIDTH}


def tracker_config(side: int = SIDE) -> Sam3TrackerVideoConfig:
    return Sam3TrackerVideoConfig(
        vision_config=vision_config(side),
        prompt_encoder_config={"hidden_size": WIDTH},
        mask_decoder_config={"hidden_size": WIDTH},
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=64,
        memory_encoder_hidden_size=WIDTH,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=4 * WIDTH,
        image_size=side,
    )


@torch.no_grad()
def tiny_tracker(side: int = SIDE) -> Sam3TrackerVideoModel:
    """Return a tracker of which no weight is zero or one, and whose objects are judged present, so that masks vary."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam3TrackerVideoModel(tracker_config(side)).eval()
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        frequencies = model.prompt_encoder.shared_embedding.positional_embedding.normal_()
        model.shared_image_embedding.positional_embedding.copy_(frequencies)
    model.mask_decoder.pred_obj_score_head.proj_out.bias += 20
    return model


def write_tiny(folder: Path) -> Path:
    """Write the tiny tracker as a folder of transformers."""
    tiny_tracker().save_pretrained(folder)
    return folder


def whole_config(side: int = SIDE) -> Sam3VideoConfig:
    """The config of detector and tracker."""
    small = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 64}
    words = {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 63, "max_position_embeddings": 8}
    detector = Sam3Config(
        vision_config=vision_config(side),
        text_config={
            "model_type": "clip_text_model",
            "num_hidden_layers": 1,
            "projection_dim": WIDTH,
            **words,
            **small,
        },
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": WIDTH, "num_attention_heads": 2},
    )
    return Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker_config(side).to_dict())


@torch.no_grad()
def write_whole(folder: Path) -> Path:
    """Write the tiny tracker with a detector, as facebook/sam3 on the hub has them: its names, and its licence."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam3VideoModel(whole_config())
    tracker = tiny_tracker()
    model.tracker_neck.load_state_dict(tracker.vision_encoder.neck.state_dict())
    model.detector_model.vision_encoder.backbone.load_state_dict(tracker.vision_encoder.backbone.state_dict())
    tracker.vision_encoder = None
    model.tracker_model.load_state_dict(tracker.state_dict())
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    once = {name.replace("tracker_model.tracker_model.", "tracker_model."): each for name, each in weights.items()}
    save_file(once, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "LICENSE").write_text("the licence's text")
    return folder
