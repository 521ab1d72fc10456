"""Pre-train the bundled nano SAM 3 on the synthetic world of words, and print how well it does on fresh pictures.

First looks and words: every cell says what it shows, and fits phrases, without queries. Then concepts: all of SAM 3,
with the same questions beside it. Both last as long as they are given. Training goes on from ``--work`` where it was
stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import cli
from src.core.torch_files import read_pt
from src.data.concepts.types import VISUAL
from src.data.synthetic.words import WORDS
from src.models.sam3.build import save_folder
from src.models.sam3.forward import ConceptOutput, TextFeatures, forward_concepts
from src.models.sam3.losses import Matches, box_losses, focal_loss, match
from src.models.sam3.nano import GRID, VIT_WIDTH, WIDTH, nano_tokenizer, new_nano
from tools.muon import Muon
from tools.nano_sam3_data import MOST, PictureBatch, PictureCache, Questions, ask_all, tokens_of
from tools.nano_sam3_heads import TrainingHeads, coverage_of
from tools.nano_sam3_report import report

LOOKS = (len(WORDS.colours), len(WORDS.shapes), len(WORDS.textures))
MATRICES = (
    "vision_encoder.backbone.layers.", "detr_encoder.layers.", "detr_decoder.layers.", "geometry_encoder.layers.",
)  # fmt: skip
"""Parts whose weight matrices Muon trains; AdamW trains the rest."""

AVERAGED_EVERY, AVERAGE = 5, 0.99
SAVED_EVERY, LOGGED_EVERY = 400, 50


@dataclass(frozen=True)
class Phase:
    """A part of pre-training.

    Attributes:
        name: of its state's file.
        pictures, questions: of a step, and for each picture.
        rate: of AdamW; Muon's is twice that.
        vit_share: of the rates, for the ViT.
        flat, end: share of the time with full rate, and share of the rate at the end.
        exemplars: share of questions with exemplar boxes.
        weights: of the losses; those that are not named count once.
    """

    name: str
    pictures: int
    questions: int
    rate: float
    vit_share: float
    flat: float
    end: float
    exemplars: float
    weights: dict[str, float]


PHASES = (
    Phase("looks", 24, 6, 1e-3, 1.0, 0.6, 0.3, 0.0, {"shape": 2.0, "outline": 3.0, "words": 20.0}),
    Phase(
        "concepts", 12, 4, 1e-3, 0.5, 0.4, 0.02, 0.15,
        {
            "outline": 1.0, "words": 10.0, "fits": 20.0, "encoder_box": 10.0, "box": 5.0, "giou": 2.0,
            "presence": 2.0, "mask": 50.0, "dice": 5.0, "all_mask": 20.0,
        },
    ),
)  # fmt: skip


class Pretraining:
    """A phase under way: model, heads, optimizers, averaged weights; all but the model are thrown away after."""

    def __init__(self, phase: Phase, cache: PictureCache, work: Path, seconds: float, seed: int) -> None:
        self.phase, self.cache, self.work, self.seconds, self.seed = phase, cache, work, seconds, seed
        self.tokenizer = nano_tokenizer([*WORDS.words(), VISUAL])
        self.vocabulary = self.tokenizer.get_vocab()
        torch.manual_seed(seed)
        self.model: Any = new_nano(len(self.tokenizer), seed)
        self.heads = TrainingHeads(VIT_WIDTH, WIDTH, GRID, LOOKS)
        for part in (self.model.vision_encoder.neck, self.model.mask_decoder):
            part.to(memory_format=torch.channels_last)
        self.step, self.elapsed = 0, 0.0
        self.optimizers = self._optimizers()
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        named = [*self.model.named_parameters(), *((f"heads.{n}", p) for n, p in self.heads.named_parameters())]
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            kind = (name.startswith(MATRICES) and parameter.ndim == 2, name.startswith("vision_encoder.backbone"))
            groups.setdefault(kind, []).append(parameter)
        made: list[torch.optim.Optimizer] = []
        for (is_matrix, in_vit), parameters in groups.items():
            rate = self.phase.rate * (self.phase.vit_share if in_vit else 1)
            if is_matrix:
                made.append(Muon(parameters, lr=2 * rate, weight_decay=0.02))
            else:
                made.append(torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02, betas=(0.9, 0.98), fused=True))
            made[-1].param_groups[0]["peak"] = made[-1].param_groups[0]["lr"]
        return made

    def run(self) -> None:
        """Train until the time is over, then save."""
        started, before = time.monotonic(), self.elapsed
        means: dict[str, float] = {}
        while self.elapsed < self.seconds:
            logged = self._step()
            self.elapsed = before + time.monotonic() - started
            for name, value in logged.items():
                means[name] = 0.95 * means.get(name, value) + 0.05 * value
            if self.step % LOGGED_EVERY == 0:
                shown = " ".join(f"{name} {value:.3f}" for name, value in means.items())
                print(f"{self.phase.name} step {self.step}, {self.elapsed:.0f} s: {shown}", flush=True)
            if self.step % SAVED_EVERY == 0:
                self.save()
        self.save()

    def save(self) -> None:
        """Write the state, and the averaged weights as a folder that loads; print how well these do."""
        state = {
            "step": self.step, "elapsed": self.elapsed, "model": self.model.state_dict(), "average": self.average,
            "heads": self.heads.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers],
        }  # fmt: skip
        torch.save(state, self.work / f"{self.phase.name}.partial")
        (self.work / f"{self.phase.name}.partial").replace(self.work / f"{self.phase.name}.pt")
        if self.phase.name == "concepts":
            print(f"step {self.step}: {report(self.write(self.work / 'folder'), pictures=40)}", flush=True)

    def write(self, folder: Path) -> Any:
        """Write the averaged weights, and return a model that has them."""
        with torch.random.fork_rng(devices=[]):
            model = type(self.model)(self.model.config)
        model.load_state_dict(self.average)
        save_folder(model, self.tokenizer, folder)
        model.tokenizer = self.tokenizer
        return model.eval()

    def load(self, file: Path, begin: bool) -> None:
        """Go on from a state: of this phase, or to ``begin`` from that of the one before."""
        state = read_pt(file)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if not begin:
            self.average, self.step, self.elapsed = state["average"], state["step"], state["elapsed"]
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def _step(self) -> dict[str, float]:
        """Take a step on a batch that depends on the phase and the step alone."""
        rng = np.random.default_rng((self.seed, self.phase.pictures, self.step))
        batch = self.cache.batch(
            rng.integers(0, self.cache.count, self.phase.pictures), rng.random(self.phase.pictures) < 0.5
        )
        questions = ask_all(WORDS, batch, self.phase.questions, rng, self.phase.exemplars)
        share = self.elapsed / self.seconds
        losses = self._losses(batch, questions, share)
        total = torch.stack([self.phase.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["peak"] * self._rate(share)
            optimizer.step()
        self.step += 1
        if self.step % AVERAGED_EVERY == 0:
            kept = min(AVERAGE, (1 + self.step) / (50 + self.step))
            for name, tensor in self.model.state_dict().items():
                self.average[name].lerp_(tensor, 1 - kept)
        return {name: loss.item() for name, loss in losses.items()}

    def _rate(self, share: float) -> float:
        """Return the share of the rate: it rises in 100 steps, stays, and falls as a cosine."""
        fallen = max(0.0, share - self.phase.flat) / (1 - self.phase.flat)
        falling = self.phase.end + (1 - self.phase.end) * 0.5 * (1 + math.cos(math.pi * min(1.0, fallen)))
        return min(1.0, (self.step + 1) / 100) * falling

    def _losses(self, batch: PictureBatch, questions: Questions, share: float) -> dict[str, Tensor]:
        pixels = batch.images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
        states = list(_vit_states(self.model.vision_encoder.backbone, pixels))
        coverage_BMN = coverage_of(batch.owners_BHW, GRID)
        losses = self.heads.cell_losses(states[-1], batch, coverage_BMN)
        losses["outline"] = self.heads.outline_losses(states, batch)
        features = [states[-1].transpose(1, 2).unflatten(2, (GRID, GRID))]
        tokens, mask = tokens_of(questions.phrases, self.vocabulary)
        words = self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
        image_of_pair = torch.arange(len(pixels)).repeat_interleave(self.phase.questions)
        covered_PMN = coverage_BMN[image_of_pair] * questions.hits_PM[..., None]
        target_PN = covered_PMN.sum(1).clamp(0, 1)
        cells_BND = self.model.vision_encoder.neck.fpn_layers[2](features[0]).flatten(2).transpose(1, 2)
        asked = torch.tensor([phrase != VISUAL for phrase in questions.phrases])
        losses["words"] = self.heads.word_loss(
            cells_BND, image_of_pair[asked], words[asked], mask[asked], target_PN[asked]
        )
        if self.phase.name == "looks":
            return losses
        with_masks = _pairs_with_masks(questions, share, self.step)
        text = TextFeatures(words, mask.bool())
        output = forward_concepts(
            self.model, features, image_of_pair, text, questions.exemplars_PX4, questions.labels_PX, with_masks
        )
        boxes_PM4 = batch.boxes_BM4[image_of_pair]
        losses |= self.heads.encoder_losses(output.encoded_PND, target_PN, boxes_PM4, covered_PMN)
        matches = match(output, [boxes[hits] for boxes, hits in zip(boxes_PM4, questions.hits_PM, strict=True)])
        losses |= _instance_losses(output, matches, questions)
        if len(with_masks):
            losses |= _mask_losses(output, matches, questions, batch.owners_BHW[image_of_pair], with_masks)
        return losses


def _vit_states(backbone: Any, pixels_B3SS: Tensor) -> Iterator[Tensor]:
    """Yield the ViT's states (B, N, C) after its second and its last layer."""
    states = backbone.embeddings(pixels_B3SS).unflatten(1, (GRID, GRID))
    states = backbone.layer_norm(states)
    for number, layer in enumerate(backbone.layers):
        states = layer(states)
        if number in (1, len(backbone.layers) - 1):
            yield states.flatten(1, 2)


def _pairs_with_masks(questions: Questions, share: float, step: int) -> Tensor:
    """Return the pairs whose masks train: none at first, later up to twelve, those of several instances first."""
    counts_P = questions.hits_PM.sum(1)
    pairs = torch.nonzero(counts_P).squeeze(1)
    order = torch.rand(len(pairs), generator=torch.Generator().manual_seed(step)) + (counts_P[pairs] > 1)
    number = 0 if share < 0.1 else 6 if share < 0.4 else 12
    return pairs[order.argsort(descending=True)[:number]].sort().values


def _instance_losses(output: ConceptOutput, matches: Matches, questions: Questions) -> dict[str, Tensor]:
    """Return losses of scores, boxes and presence, summed over decoder layers.

    Scores have the plain cross entropy, in which instances count twice and absent phrases a quarter: from scratch that
    is quicker than the focal loss. Presence is asked for 0.01 and 0.99.
    """
    present_P = questions.hits_PM.any(1)
    number = max(1, int(questions.hits_PM.sum()))
    target = torch.zeros_like(output.logits_LPQ)
    target[matches.layer, matches.pair, matches.query] = 1
    weight = torch.where(present_P, 1.0, 0.25)[None, :, None] * (1 + target)
    score = (F.binary_cross_entropy_with_logits(output.logits_LPQ, target, reduction="none") * weight).sum() / number
    wanted = torch.where(present_P, 0.99, 0.01).expand_as(output.presence_LP)
    presence = F.binary_cross_entropy_with_logits(output.presence_LP, wanted) * len(wanted)
    boxes = {name: loss / number for name, loss in box_losses(output.boxes_LPQ4, matches).items()}
    return {"score": score, "presence": presence, **boxes}


def _mask_losses(
    output: ConceptOutput, matches: Matches, questions: Questions, owners_PHW: Tensor, with_masks: Tensor
) -> dict[str, Tensor]:
    """Return losses of masks, at all of their points: instances' focal and dice, and all instances in one."""
    assert output.masks_KQhw is not None
    assert output.semantic_Khw is not None
    size = output.masks_KQhw.shape[-2:]
    row_of_pair = torch.full((len(owners_PHW),), -1)
    row_of_pair[with_masks] = torch.arange(len(with_masks))
    used = (matches.layer == len(output.logits_LPQ) - 1) & (row_of_pair[matches.pair] >= 0)
    pair, query, instance = matches.pair[used], matches.query[used], matches.instance[used]
    thing = questions.hits_PM.float().cumsum(1)  # 1 at the first instance, 2 at the second …
    number = torch.stack([torch.nonzero(questions.hits_PM[p])[i, 0] for p, i in zip(pair, instance, strict=True)]) + 1
    assert thing.shape[1] == MOST
    logits = output.masks_KQhw[row_of_pair[pair], query]
    wanted = _shrunk(owners_PHW[pair] == number[:, None, None], size)
    shown = torch.cat([torch.zeros(len(with_masks), 1, dtype=torch.bool), questions.hits_PM[with_masks]], 1)
    owners = owners_PHW[with_masks].long()
    every = _shrunk(shown.gather(1, owners.flatten(1)).view_as(owners), size)
    all_focal, all_dice = _focal_and_dice(output.semantic_Khw, every)
    focal, dice = _focal_and_dice(logits, wanted)
    return {"mask": focal, "dice": dice, "all_mask": all_focal, "all_dice": all_dice}


def _shrunk(masks_KHW: Tensor, size: torch.Size) -> Tensor:
    """Return the share of each point of a smaller grid that masks cover."""
    return F.interpolate(masks_KHW[:, None].float(), size, mode="area")[:, 0]


def _focal_and_dice(logits_Khw: Tensor, target_Khw: Tensor) -> tuple[Tensor, Tensor]:
    found = logits_Khw.sigmoid()
    overlap = (2 * (found * target_Khw).sum((1, 2)) + 1) / (found.sum((1, 2)) + target_Khw.sum((1, 2)) + 1)
    return 2 * focal_loss(logits_Khw, target_Khw, 2.0, 0.5).mean(), (1 - overlap).mean()


def pretrain(arguments: argparse.Namespace) -> None:
    """Run the phases, each from its own state, or from the end of the one before."""
    work = Path(arguments.work)
    cache = PictureCache(WORDS, work / "cache", arguments.pictures, first_seed=0)
    previous: Path | None = None
    for phase, minutes in zip(PHASES, arguments.minutes, strict=True):
        state = work / f"{phase.name}.pt"
        training = Pretraining(phase, cache, work, 60 * minutes, arguments.seed)
        if state.exists():
            training.load(state, begin=False)
        elif previous is not None:
            training.load(previous, begin=True)
        training.run()
        previous = state
    training.write(Path(arguments.output))


if __name__ == "__main__":
    arguments = cli.parser(__doc__.splitlines()[0], "python -m tools.pretrain_nano_sam3 --output checkpoints/sam3_nano")
    arguments.add_argument("--output", default="checkpoints/sam3_nano", help="folder of the model")
    arguments.add_argument("--work", default="pretraining", help="folder of pictures and states")
    arguments.add_argument("--minutes", type=float, nargs=2, default=[18, 54], help="of the two phases")
    arguments.add_argument("--pictures", type=int, default=12000, help="pictures that are drawn (default: 12000)")
    arguments.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    cli.run(pretrain, arguments)
