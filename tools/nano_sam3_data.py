"""Pictures of the world of words, drawn once and kept in files, and the batches that pre-training draws of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.core.console import progress_bar
from src.data.synthetic.words import Concept, WordPicture, WordWorld, ask, foreign_word, make_picture

MOST = 5
"""Things of a picture."""

CHUNK = 2000
"""Pictures of a file."""


@dataclass(frozen=True)
class PictureBatch:
    """B pictures and what is in them; places of things that there are not hold zeros, and -1 as looks.

    Attributes:
        images_BHWC: uint8.
        owners_BHW: uint8, 0 or a thing's number from 1 on.
        boxes_BM4: float32, corners in 0–1.
        looks_BM3: int64, number of colour, shape and texture.
        pictures: their things, for asking.
    """

    images_BHWC: Tensor
    owners_BHW: Tensor
    boxes_BM4: Tensor
    looks_BM3: Tensor
    pictures: tuple[WordPicture, ...]


@dataclass(frozen=True)
class Questions:
    """P phrases about B pictures, the same number about each.

    Attributes:
        phrases: the words; ``visual`` where only exemplars ask.
        hits_PM: bool, which things are instances.
        exemplars_PX4: float32, centre, width, height in 0–1.
        labels_PX: int64, 1 and 0, or -10 for no box.
    """

    phrases: tuple[str, ...]
    hits_PM: Tensor
    exemplars_PX4: Tensor
    labels_PX: Tensor


class PictureCache:
    """Pictures of consecutive seeds in memory-mapped files, drawn where they are missing."""

    def __init__(self, world: WordWorld, folder: Path, count: int, first_seed: int) -> None:
        self.world, self.count = world, count
        self.looks = [tuple(world.colours), tuple(world.shapes), tuple(world.textures)]
        starts = range(first_seed, first_seed + count, CHUNK)
        self.chunks = [
            self._open(folder / f"{start}.npz", start, min(CHUNK, first_seed + count - start)) for start in starts
        ]

    def _open(self, file: Path, first_seed: int, count: int) -> dict[str, np.ndarray]:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._draw(file, first_seed, count)
        names = ("images", "owners")
        big = {name: np.load(file.with_suffix(f".{name}.npy"), mmap_mode="r") for name in names}
        with np.load(file) as small:
            return {**big, **small}

    def _draw(self, file: Path, first_seed: int, count: int) -> None:
        images, owners = [], []
        boxes, looks = np.zeros((count, MOST, 4), np.float32), np.full((count, MOST, 3), -1, np.int64)
        for i in progress_bar(range(count), desc=f"pictures from {first_seed}"):
            picture = make_picture(self.world, first_seed + i)
            images.append(picture.image_HWC)
            owners.append(picture.owner_HW)
            for number, thing in enumerate(picture.things):
                boxes[i, number] = box_of(picture.mask(number))
                names = (thing.colour, thing.shape, thing.texture)
                looks[i, number] = [known.index(str(name)) for known, name in zip(self.looks, names, strict=True)]
        np.save(file.with_suffix(".images.npy"), np.stack(images))
        np.save(file.with_suffix(".owners.npy"), np.stack(owners))
        np.savez(file, boxes=boxes, looks=looks)

    def batch(self, indices: np.ndarray, flips: np.ndarray) -> PictureBatch:
        """Return pictures by number, mirrored left to right where ``flips`` says so."""
        rows = [(self.chunks[i // CHUNK], i % CHUNK, flip) for i, flip in zip(indices, flips, strict=True)]
        step = [slice(None, None, -1 if flip else 1) for *_, flip in rows]
        images = np.stack([chunk["images"][j][:, s] for (chunk, j, _), s in zip(rows, step, strict=True)])
        owners = np.stack([chunk["owners"][j][:, s] for (chunk, j, _), s in zip(rows, step, strict=True)])
        boxes = np.stack([chunk["boxes"][j] for chunk, j, _ in rows])
        looks = np.stack([chunk["looks"][j] for chunk, j, _ in rows])
        there = looks[..., 0] >= 0
        mirrored = np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
        boxes = np.where((flips[:, None] & there)[..., None], mirrored, boxes)
        pictures = tuple(
            WordPicture(image, owner, self._things(look))
            for image, owner, look in zip(images, owners, looks, strict=True)
        )
        tensors = [torch.from_numpy(each) for each in (images, owners, boxes.astype(np.float32), looks)]
        return PictureBatch(tensors[0], tensors[1], tensors[2], tensors[3], pictures)

    def _things(self, looks_M3: np.ndarray) -> tuple[Concept, ...]:
        return tuple(
            Concept(*(known[number] for known, number in zip(self.looks, look, strict=True)))
            for look in looks_M3
            if look[0] >= 0
        )


def box_of(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Return a mask's box, corners in 0–1."""
    height, width = mask_HW.shape
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def ask_all(
    world: WordWorld,
    batch: PictureBatch,
    each: int,
    rng: np.random.Generator,
    exemplars: float = 0.0,
    foreign: float = 0.03,
    spelled: float = 0.05,
) -> Questions:
    """Draw ``each`` questions about every picture.

    Args:
        world: whose words are used.
        batch: the pictures.
        each: questions of a picture.
        rng: what is drawn with.
        exemplars: share of questions with exemplar boxes, most of them without words.
        foreign: share of phrases with a word that means nothing, which are absent.
        spelled: share of phrases of which a word has its letters apart, so that letters mean something.
    """
    phrases, hits, boxes, labels = [], np.zeros((len(batch.pictures) * each, MOST), bool), [], []
    for n, picture in enumerate(batch.pictures):
        for k in range(each):
            row = n * each + k
            if picture.things and rng.random() < exemplars:
                words, found, shown, signs = _exemplar_question(world, picture, batch.boxes_BM4[n].numpy(), rng)
            else:
                concept, found = ask(world, picture, rng)
                words, shown, signs = concept.phrase(world, rng), [], []
                if rng.random() < foreign:
                    adjectives = words.split()[:-1]
                    words, found = " ".join([*adjectives[: int(rng.integers(2))], foreign_word(rng)]), []
                elif rng.random() < spelled:
                    words = _spell(words, rng)
            phrases.append(words)
            hits[row, found] = True
            boxes.append(shown)
            labels.append(signs)
    most = max(map(len, boxes))
    boxes_PX4 = torch.zeros(len(phrases), most, 4)
    labels_PX = torch.full((len(phrases), most), -10)
    for row, (shown, signs) in enumerate(zip(boxes, labels, strict=True)):
        if shown:
            boxes_PX4[row, : len(shown)] = torch.tensor(np.array(shown), dtype=torch.float32)
            labels_PX[row, : len(signs)] = torch.tensor(signs)
    return Questions(tuple(phrases), torch.from_numpy(hits), boxes_PX4, labels_PX)


def _exemplar_question(
    world: WordWorld, picture: WordPicture, boxes_M4: np.ndarray, rng: np.random.Generator
) -> tuple[str, list[int], list[np.ndarray], list[int]]:
    """Return words, instances, boxes and labels: the thing in the box, and all of its colour and shape.

    One in four also says what it is, one in four has a box around something else, which is not meant.
    """
    thing = picture.things[int(rng.integers(len(picture.things)))]
    concept = Concept(thing.colour, thing.shape)
    found = [number for number, other in enumerate(picture.things) if concept.matches(other)]
    others = [number for number in range(len(picture.things)) if number not in found]
    shown = [int(number) for number in rng.permutation(found)[: 1 + int(rng.random() < 0.25)]]
    signs = [1] * len(shown)
    if others and rng.random() < 0.25:
        shown.append(others[int(rng.integers(len(others)))])
        signs.append(0)
    corners = [boxes_M4[number] + rng.normal(0, 0.006, 4) for number in shown]
    boxes = [np.concatenate([(c[:2] + c[2:]) / 2, c[2:] - c[:2]]).clip(0, 1) for c in corners]
    said = rng.random() < 0.25 and (thing.colour, thing.shape) not in world.held_out
    return concept.phrase(world, rng) if said else "visual", found, boxes, signs


def _spell(phrase: str, rng: np.random.Generator) -> str:
    """Return a phrase of which one word is in capitals, which :func:`tokens_of` takes letter by letter."""
    words = phrase.split()
    at = int(rng.integers(len(words)))
    return " ".join([*words[:at], words[at].upper(), *words[at + 1 :]])


def tokens_of(phrases: tuple[str, ...], vocabulary: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Return tokens and mask (P, T) as the nano's tokenizer does; words in capitals are spelled."""
    rows = []
    for phrase in phrases:
        row = [vocabulary["[BOS]"]]
        for word in phrase.split():
            if word in vocabulary:
                row.append(vocabulary[word])
            else:
                spelled = word.lower()
                row += [vocabulary[spelled[0]], *(vocabulary[f"##{letter}"] for letter in spelled[1:])]
        rows.append([*row, vocabulary["[EOS]"]])
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [vocabulary["[PAD]"]] * (longest - len(row)) for row in rows])
    return tokens, (torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]).long()
