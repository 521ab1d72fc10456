"""SAM 3's forward with an image shared by its phrases, and with what every decoder layer says.

``Sam3Model.forward`` takes one phrase an image and returns the last layer. These functions call the same modules on the
same numbers: the ViT runs once an image and the text encoder once a phrase, and both can be kept while they are frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import Sam3Model

from ...core.errors import UserError
from ...data.concepts.types import PADDING
from ...lora.adapter import AdapterLayer
from ..protocols import Features


@dataclass(frozen=True)
class TextFeatures:
    """What the text encoder says of phrases.

    Attributes:
        words_PTD: float (P, T, D), a vector a token, padded to the longest.
        mask_PT: bool, True at tokens.
    """

    words_PTD: Tensor
    mask_PT: Tensor

    def repeated(self, pairs: Tensor) -> TextFeatures:
        """Return those of other pairs, by the number of each one's phrase."""
        return TextFeatures(self.words_PTD[pairs], self.mask_PT[pairs])


@dataclass(frozen=True)
class ConceptOutput:
    """What a model finds for P pairs of an image and a phrase, with L decoder layers and Q queries.

    Attributes:
        logits_LPQ: whether a query is an instance, given that the phrase is there.
        boxes_LPQ4: corners x0, y0, x1, y1 in 0–1.
        presence_LP: logits of whether the phrase is there at all.
        masks_KQhw: logits of the last layer's masks, of the K pairs that were asked for; None without masks.
        semantic_Khw: logits of all instances in one mask; None without masks.
        encoded_PND: cells after they have met the phrase.
    """

    logits_LPQ: Tensor
    boxes_LPQ4: Tensor
    presence_LP: Tensor
    masks_KQhw: Tensor | None
    semantic_Khw: Tensor | None
    encoded_PND: Tensor

    @property
    def scores_PQ(self) -> Tensor:
        """Probabilities that a query is an instance, the last layer's."""
        return self.logits_LPQ[-1].sigmoid() * self.presence_LP[-1, :, None].sigmoid()


def encode_images(model: Sam3Model, images_BHWC: Tensor) -> Features:
    """Return the ViT's output for square images, uint8 RGB (B, S, S, 3): one level, float (B, C, h, w).

    It has a graph where the ViT trains. The neck's levels are larger than it, so :func:`forward_concepts` makes them.
    """
    device = next(model.parameters()).device
    pixels_B3SS = images_BHWC.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    states_BNC = model.vision_encoder.backbone(pixels_B3SS).last_hidden_state
    side = images_BHWC.shape[1] // model.config.vision_config.backbone_config.patch_size
    return [states_BNC.transpose(1, 2).unflatten(2, (side, side))]


def encode_phrases(model: Sam3Model, phrases: Sequence[str]) -> TextFeatures:
    """Return the text features of P phrases, each computed by itself and once.

    While the text encoder is frozen and has no adapters, features are kept on the model until its weights change.
    """
    frozen = has_frozen_text(model)
    kept = _kept_phrases(model) if frozen else {}
    for phrase in dict.fromkeys(phrases):
        if phrase not in kept:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                kept[phrase] = _encode_phrase(model, phrase)
    return pad_words([kept[phrase] for phrase in phrases])


def pad_words(words: Sequence[Tensor]) -> TextFeatures:
    """Return text features of P phrases, (T, D) each, as one."""
    longest = max(map(len, words))
    padded = [nn.functional.pad(each, (0, 0, 0, longest - len(each))) for each in words]
    lengths = torch.tensor([len(each) for each in words], device=words[0].device)
    return TextFeatures(torch.stack(padded), torch.arange(longest, device=lengths.device) < lengths[:, None])


def has_frozen_text(model: Sam3Model) -> bool:
    """Return whether training leaves text features as they are: nothing of the text encoder is trained or adapted."""
    parts: tuple[nn.Module, ...] = (model.text_encoder, model.text_projection)
    return not any(p.requires_grad for part in parts for p in part.parameters()) and not any(
        isinstance(module, AdapterLayer) for part in parts for module in part.modules()
    )


def has_frozen_encoder(model: Sam3Model) -> bool:
    """Return whether training leaves :func:`encode_images` as it is."""
    backbone: nn.Module = model.vision_encoder.backbone
    return not any(parameter.requires_grad for parameter in backbone.parameters())


def _encode_phrase(model: Sam3Model, phrase: str) -> Tensor:
    if model.tokenizer is None:
        raise UserError(
            "model.checkpoint: null stands for random weights without a tokenizer; name a folder that has one",
            "base.no-tokenizer",
        )
    tokens = model.tokenizer([phrase], return_tensors="pt", truncation=True)
    device = model.text_projection.weight.device
    text = model.get_text_features(
        input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
    )
    words_TD: Tensor = text.pooler_output[0]
    return words_TD


def _kept_phrases(model: Sam3Model) -> dict[str, Tensor]:
    """Return the features kept on a model, none where its text encoder is another one than they were made with."""
    weights = [*model.text_encoder.parameters(), *model.text_projection.parameters()]
    device = weights[0].device.type
    state = (
        *((weight.data_ptr(), weight._version) for weight in weights),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
    )
    if getattr(model, "_kept_phrases", (None,))[0] != state:
        model._kept_phrases = (state, {})
    kept: dict[str, Tensor] = model._kept_phrases[1]
    return kept


def forward_concepts(
    model: Sam3Model,
    features: Features,
    image_of_pair: Tensor,
    text: TextFeatures,
    exemplars_PX4: Tensor | None = None,
    labels_PX: Tensor | None = None,
    masks: bool | Tensor = True,
) -> ConceptOutput:
    """Find P phrases in B images.

    Args:
        model: transformers' own, with adapters or without.
        features: of :func:`encode_images`.
        image_of_pair: int64 (P,), each pair's image.
        text: of P phrases.
        exemplars_PX4: boxes as centre, width and height in 0–1; None or X = 0 for no boxes.
        labels_PX: 1 for an example, 0 for what is not meant, -10 for no box.
        masks: whether masks are made; or for which pairs, int64 (K,).
    """
    neck = model.vision_encoder.neck
    coarse_BDhw = neck.fpn_layers[2](features[0])
    position_BDhw = neck.position_encoding(coarse_BDhw.shape, coarse_BDhw.device, coarse_BDhw.dtype)
    pairs = image_of_pair.to(coarse_BDhw.device)
    coarse, position = coarse_BDhw[pairs], position_BDhw.expand(len(coarse_BDhw), -1, -1, -1)[pairs]
    prompt = _with_exemplars(model, text, coarse, position, exemplars_PX4, labels_PX)
    encoded = model.detr_encoder(
        vision_features=[coarse],
        text_features=prompt.words_PTD,
        vision_pos_embeds=[position],
        text_mask=prompt.mask_PT,
    )
    decoded = model.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=encoded.text_features,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=prompt.mask_PT,
        spatial_shapes=encoded.spatial_shapes,
    )
    queries_LPQD = decoded.intermediate_hidden_states
    refined = model.detr_decoder.box_head(queries_LPQD) + _logit(decoded.reference_boxes)
    output = ConceptOutput(
        logits_LPQ=model.dot_product_scoring(
            decoder_hidden_states=queries_LPQD, text_features=encoded.text_features, text_mask=prompt.mask_PT
        ).squeeze(-1),
        boxes_LPQ4=to_corners(refined.sigmoid()),
        presence_LP=decoded.presence_logits.squeeze(-1),
        masks_KQhw=None,
        semantic_Khw=None,
        encoded_PND=encoded.last_hidden_state,
    )
    chosen = torch.arange(len(pairs)) if isinstance(masks, bool) else masks
    if masks is False or not len(chosen):
        return output
    chosen = chosen.to(pairs.device)
    return _with_masks(model, output, features[0], coarse, pairs, prompt, queries_LPQD[-1], chosen)


def _with_masks(
    model: Sam3Model,
    output: ConceptOutput,
    states_BChw: Tensor,
    coarse_PDhw: Tensor,
    pairs: Tensor,
    prompt: TextFeatures,
    queries_PQD: Tensor,
    chosen: Tensor,
) -> ConceptOutput:
    """Return the output with masks of some pairs; the neck's fine levels are made once an image."""
    images, image_of_chosen = torch.unique(pairs[chosen], return_inverse=True)
    fine = [model.vision_encoder.neck.fpn_layers[level](states_BChw[images])[image_of_chosen] for level in (0, 1)]
    found = model.mask_decoder(
        decoder_queries=queries_PQD[chosen],
        backbone_features=[*fine, coarse_PDhw[chosen]],
        encoder_hidden_states=output.encoded_PND[chosen],
        prompt_features=prompt.words_PTD[chosen],
        prompt_mask=prompt.mask_PT[chosen],
    )
    return replace(output, masks_KQhw=found.pred_masks, semantic_Khw=found.semantic_seg[:, 0])


def _with_exemplars(
    model: Sam3Model,
    text: TextFeatures,
    coarse_PDhw: Tensor,
    position_PDhw: Tensor,
    exemplars_PX4: Tensor | None,
    labels_PX: Tensor | None,
) -> TextFeatures:
    """Return the prompt: text, then exemplars.

    A pair without boxes is asked as it is where no pair has any: the encoder's token that is not of a box is masked.
    """
    if exemplars_PX4 is None or labels_PX is None or not bool((labels_PX != PADDING).any()):
        return text
    device = coarse_PDhw.device
    boxes, labels = exemplars_PX4.to(device), labels_PX.to(device)
    there = labels != PADDING
    with torch.autocast(device.type, enabled=False):  # it pools boxes, which torchvision does not in bfloat16
        geometry = model.geometry_encoder(
            box_embeddings=boxes,
            box_mask=there,
            box_labels=labels.where(there, 0),
            img_feats=(coarse_PDhw.float(),),
            img_pos_embeds=(position_PDhw.float(),),
        )
    shown = geometry.attention_mask & there.any(1, keepdim=True)
    return TextFeatures(torch.cat([text.words_PTD, geometry.last_hidden_state], 1), torch.cat([text.mask_PT, shown], 1))


def to_corners(boxes: Tensor) -> Tensor:
    """Return boxes (…, 4) of centre, width and height as x0, y0, x1, y1."""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], -1)


def to_centres(boxes: Tensor) -> Tensor:
    """Return boxes (…, 4) of corners as centre, width and height."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)


def _logit(boxes: Tensor, least: float = 1e-3) -> Tensor:
    """Return the inverse of the sigmoid as ``Sam3Model`` computes it for reference boxes."""
    boxes = boxes.clamp(min=0, max=1)
    return torch.log(boxes.clamp(min=least) / (1 - boxes).clamp(min=least))


def input_size(model: Sam3Model) -> int:
    """Return the side, in pixels, of the square images that a model sees."""
    return int(model.config.vision_config.backbone_config.image_size)


def query_count(model: Sam3Model) -> int:
    """Return how many instances of a phrase a model can give, at most."""
    return int(model.config.detr_decoder_config.num_queries)
