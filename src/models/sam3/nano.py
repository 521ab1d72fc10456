"""Builds the nano SAM 3 before its pre-training: a small ``Sam3Model`` that learns, and a tokenizer of few words.

transformers draws every weight from a normal of 0.02, which is meant for full width. At 64 channels signals die, all
queries begin as the same box, and the box bias lets no query look at its own box. :func:`new_nano` mends these three.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Sam3Config, Sam3Model

WIDTH, VIT_WIDTH, QUERIES = 64, 128, 16
SIDE, PATCH = 168, 14
GRID = SIDE // PATCH
LONGEST_PHRASE = 32
SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")

LOOK_INSIDE = (30.0, 30.0, 10.0, 0.0)
"""By how much each head's attention falls per unit of distance outside a query's box."""


def nano_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows whole words, and spells all others by letters and digits."""
    letters = string.ascii_lowercase + string.digits
    pieces = (*SPECIAL, *letters, *(f"##{letter}" for letter in letters))
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in dict.fromkeys(words)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        model_max_length=LONGEST_PHRASE,
    )


def nano_config(vocabulary: int) -> Sam3Config:
    """Return the architecture: 2.1 million parameters, 168 px, 16 queries, masks of 48 × 48."""
    part = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH, "dropout": 0.0}
    vit = {
        "model_type": "sam3_vit_model",
        "hidden_size": VIT_WIDTH,
        "intermediate_size": 4 * VIT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        "window_size": GRID // 2,
        "global_attn_indexes": [1, 3],
        "pretrain_image_size": SIDE // 2,  # tiled, as SAM 3's own is
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LONGEST_PHRASE,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Sam3Config(
        vision_config={
            "backbone_config": vit,
            "fpn_hidden_size": WIDTH,
            "backbone_feature_sizes": [[GRID * 4] * 2, [GRID * 2] * 2, [GRID] * 2],
        },
        text_config=text,
        geometry_encoder_config={**part, "num_layers": 1},
        detr_encoder_config={**part, "num_layers": 2},
        detr_decoder_config={**part, "num_layers": 3, "num_queries": QUERIES},
        mask_decoder_config={"hidden_size": WIDTH, "num_attention_heads": 4},
    )


def new_nano(vocabulary: int, seed: int = 0, bias_steps: int = 600) -> Sam3Model:
    """Return a model with weights that learn quickly, all drawn from a seed; the box bias is fitted in some steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam3Model(nano_config(vocabulary))
        _scale_weights(model)
        _spread_queries(model.detr_decoder)
        for embed in (model.detr_decoder.box_rpb_embed_x, model.detr_decoder.box_rpb_embed_y):
            _fit_box_bias(embed, bias_steps)
    return model


@torch.no_grad()
def _scale_weights(model: Sam3Model) -> None:
    """Draw weights by their fan, so that signals keep their size."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if isinstance(module, (nn.Linear, nn.ConvTranspose2d, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, weight in model.text_encoder.named_parameters():
        if name.endswith("token_embedding.weight"):
            nn.init.normal_(weight, std=0.5)
        elif name.endswith("position_embedding.weight"):
            nn.init.normal_(weight, std=0.1)
    model.mask_decoder.mask_embedder.layers[-1].weight.mul_(0.2)


@torch.no_grad()
def _spread_queries(decoder: Any) -> None:
    """Let queries differ: reference boxes on a grid, embeddings of size one, boxes refined from nothing."""
    nn.init.normal_(decoder.query_embed.weight)
    nn.init.normal_(decoder.presence_token.weight)
    nn.init.zeros_(decoder.box_head.layer3.weight)
    nn.init.zeros_(decoder.box_head.layer3.bias)
    side = round(QUERIES**0.5)
    at = (torch.arange(side) + 0.5) / side
    centres = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)
    decoder.reference_points.weight.copy_(torch.logit(torch.cat([centres, torch.full((QUERIES, 2), 0.25)], 1)))


def _fit_box_bias(embed: nn.Module, steps: int) -> None:
    """Fit one axis of the decoder's box bias to: look inside the reference box (``LOOK_INSIDE``)."""
    slopes = torch.tensor(LOOK_INSIDE)
    optimizer = torch.optim.Adam(embed.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps) + 1e-4
        centre, size = torch.rand(512, 1), torch.rand(512, 1) * 0.5 + 0.05
        at = torch.randint(0, GRID, (512, 1)) / GRID
        offsets = torch.cat([at - (centre - size / 2), at - (centre + size / 2)], 1)
        half = 0.5 / GRID  # a cell's coordinate is its edge
        outside = torch.maximum(-(offsets[:, :1] + half), offsets[:, 1:] + half).clamp(0, 0.4)
        loss = (embed(_log_scale(offsets)) + slopes * outside).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _log_scale(offsets: Tensor) -> Tensor:
    """Return distances as ``Sam3DetrDecoder`` scales them before its bias MLP."""
    return torch.sign(offsets) * torch.log2(offsets.abs() * 8 + 1) / 3
