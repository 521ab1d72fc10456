"""A first config for a folder of data on this machine: sensible values, with the reason for each beside it.

``write_suggestion(folder, output)`` looks at the data and the machine, takes the shipped YAML of the base that suits
them, and changes what they call for.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..config import TAKEN_NAMES, Config, NamedSplit, Prompt, Split, load_config, one_line_yaml
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..core.files import write_text
from ..core.machine import Machine, this_machine
from ..core.shipped import CONFIGS, find_file
from ..core.streams import one_line
from ..data.copies import frame_of, leaks, origins, picture_of
from ..data.formats import format_names
from ..data.records import Issue
from ..data.summary import DatasetSummary, entry_names, find_splits, has_tracks, summarize, void_categories
from ..models.spec import ModelSpec, model_names, model_spec
from ..models.zoo import DEFAULT_MODEL

logger = logging.getLogger(__name__)

HELD_OUT = 0.15
"""Share of the videos that become the validation split where there is none."""

MOST_HELD_OUT = 100

WELL_SEEN = 16
"""Pixels that the side of half of the objects should have at the model's resolution: one token of its features."""

LARGEST_SMALL = {"cpu": 256, "cuda": 512}
"""Pixels beyond which the bundled base, made for 128, is not suggested: time grows as their square."""

CLIPS_IN_ALL = 2048
"""About as many training clips as the shipped YAMLs of the bundled base show in all."""

MOST_VALIDATED = 50
"""Validation videos or images that a machine without a GPU scores after each epoch."""

_INLINE_NAMES = 8
_WIDTH = 110


@dataclass(frozen=True)
class Setting:
    """A value of the YAML by its dotted key, and why it has it."""

    key: str
    value: Any
    reason: str


def write_suggestion(folder: Path, output: Path, mask_threshold: float | None = None) -> None:
    """Write a YAML for the data in a folder, and beside it lists of videos where a split had to be made.

    Raises:
        UserError: the folder holds no data that can be used, or ``output`` exists.
    """
    splits = _complete(_ignoring(_as_videos(find_splits(folder, mask_threshold))), output)
    damage = _damage_of(splits)
    lists = [split.list_file for split in splits.values() if split.list_file is not None]
    if there := next((path for path in (output, *lists) if path.exists()), None):
        raise UserError(f"{there} exists already; name another file with --output, or delete it", "init.exists")
    summaries = {split: chosen.summary for split, chosen in splits.items()}
    machine = this_machine()
    model, why_model = choose_base(machine)
    shipped = load_config(_shipped_yaml(model))
    settings = [
        *_model_settings(shipped, machine, summaries["train"], why_model),
        *_data_settings(folder, splits, damage),
        *_clip_settings(shipped, summaries["train"]),
        *_training_settings(shipped, machine, summaries),
        *_evaluation_settings(machine, summaries),
        Setting("output_dir", f"experiments/{_domain_name(folder)}", "checkpoints, adapter, logs and results"),
    ]
    for split in splits.values():
        if split.list_file is not None:
            write_text(split.list_file, "".join(f"{name}\n" for name in split.names))
    write_text(output, _render(settings, shipped, _headline(folder, summaries, machine, output)))
    load_config(output)
    kind = summaries["train"].kind
    found = "; ".join(f"{split}: {_contents(summary)}" for split, summary in summaries.items())
    logger.info(f"read as {kind}: {found}. dataset.format overrules it: {_other(kind)}")
    for warning in _leaks(splits):
        logger.warning(f"warning: {warning}")
    if damage.errors:
        logger.warning(f"{damage}; dataset.skip_bad leaves them out")


@dataclass(frozen=True)
class ChosenSplit:
    """A split to write down, with the reason for it.

    ``list_file`` is to be written with ``names``, if it is given. ``whole``: the data set that the split is a part of,
    all of it parsed.
    """

    place: NamedSplit
    reason: str
    list_file: Path | None = None
    names: tuple[str, ...] = ()
    whole: DatasetSummary | None = None

    @cached_property
    def summary(self) -> DatasetSummary:
        """What the split is like, also where the list of its names is still to be written."""
        return summarize(self.place.model_copy(update={"videos": list(self.names)}) if self.names else self.place)


def _leaks(splits: dict[Split, ChosenSplit]) -> list[str]:
    """Warnings of pictures that are on both sides of a split, in as far as names say so."""
    places = {split: chosen.place for split, chosen in splits.items()}
    found = {split: origins(entry_names(place), tracked=has_tracks(place)) for split, place in places.items()}
    others: list[Split] = [split for split in splits if split != "train"]
    warnings = [warning for split in others for warning in leaks(found["train"], found[split], ("train", split))]
    if any(places[split] == places["train"] for split in others):
        warnings.append(splits["valid"].reason)
    return warnings


@dataclass(frozen=True)
class Damage:
    """Errors met in the data sets of all splits, in how many of the images or videos looked at."""

    errors: list[Issue]
    damaged: int
    looked_at: int
    listed: int

    def __str__(self) -> str:
        found = f"{_plural(len(self.errors), 'error')} in {self.damaged} of {self.looked_at} images or videos"
        return f"{found}, the first: {self.errors[0]}" if self.errors else f"no error in {self.looked_at}"


def _damage_of(splits: dict[Split, ChosenSplit]) -> Damage:
    """Return the damage in the splits; of those that are parts of one data set, it is in all of that."""
    summaries = list({id(one): one for chosen in splits.values() for one in [chosen.whole or chosen.summary]}.values())
    return Damage(
        errors=list(dict.fromkeys(issue for one in summaries for issue in one.errors)),
        damaged=sum(len(one.damaged) for one in summaries),
        looked_at=sum(len(one.names) for one in summaries),
        listed=sum(one.listed for one in summaries),
    )


def _as_videos(found: dict[Split, NamedSplit]) -> dict[Split, NamedSplit]:
    """The splits, read as videos where track ids say so and they can be."""
    if not all(has_tracks(place) for place in found.values()):
        return found
    places = {split: _as_video(place) for split, place in found.items()}
    try:
        summaries = [summarize(place) for place in places.values()]
    except UserError:
        return found
    return found if any(summary.stills or summary.errors for summary in summaries) else places


def _as_video(place: NamedSplit) -> NamedSplit:
    """The split by track ids; its file names are seen from its folder of images, where COCO's reader looks further."""
    inside = Path(place.img_folder) / "images"
    folder = str(inside) if inside.is_dir() else place.img_folder
    return place.model_copy(update={"format": "ytvis", "img_folder": folder})


def _ignoring(found: dict[Split, NamedSplit]) -> dict[Split, NamedSplit]:
    """The splits, with the categories ignored that look like void in all of them."""
    names = [void_categories(place) for place in found.values()]
    ignored = [name for name in names[0] if all(name in others for others in names)]
    return {split: place.model_copy(update={"ignore_categories": ignored}) for split, place in found.items()}


def _complete(found: dict[Split, NamedSplit], output: Path) -> dict[Split, ChosenSplit]:
    """Training and validation whatever the folder holds: what there is, or a part held out of it."""
    if "train" in found and "valid" in found:
        return {split: ChosenSplit(place, f"the {split} split") for split, place in found.items()}
    if "train" not in found and len(found) == 2:
        largest, other = sorted(found, key=lambda split: -summarize(found[split]).count)
        return {
            "train": ChosenSplit(found[largest], f"there is no training split: of the others {largest} is the larger"),
            "valid": ChosenSplit(found[other], f"the {other} split"),
        }
    if "train" not in found or "test" not in found:
        return _hold_out(next(iter(found.values())), output)
    splits = _hold_out(found["train"], output)
    splits["test"] = ChosenSplit(found["test"], "the test split")
    return splits


def _hold_out(place: NamedSplit, output: Path) -> dict[Split, ChosenSplit]:
    """A validation split out of a data set: the last in its order, so that neighbours stay together.

    Damaged entries are in the lists too, so that every check meets them.
    """
    whole = summarize(place, sampled=None)
    usable = len(whole.usable)
    tracked = has_tracks(place)
    videos = {name: frame[0] for name in whole.names if (frame := frame_of(name, tracked)) is not None}
    by_video = whole.stills and len(set(videos.values())) > 1
    groups: dict[str, list[str]] = {}
    for name in whole.names:
        source = (f"frame {videos[name]}" if by_video and name in videos else None) or picture_of(name)
        groups.setdefault(source or f"/{name}", []).append(name)
    if sum(not whole.usable.isdisjoint(group) for group in groups.values()) < 2:
        warning = "there is one video only: it is trained on and validated on, so scores say nothing of other videos"
        return {
            "train": ChosenSplit(place, "all there is", whole=whole),
            "valid": ChosenSplit(place, warning, whole=whole),
        }
    count = min(MOST_HELD_OUT, max(1, round(HELD_OUT * usable)))
    held_out, left = list[str](), usable
    for group in reversed(groups.values()):
        here = len(whole.usable.intersection(group))
        if usable - left >= count or here == left:
            break
        held_out += group
        left -= here
    parts: dict[Split, tuple[str, ...]] = {
        "train": tuple(name for name in whole.names if name not in set(held_out)),
        "valid": tuple(name for name in whole.names if name in set(held_out)),
    }
    why = f"the last {len(held_out)} of {len(whole.names)}, held out of training"
    if by_video:
        why += f"; frames of a video stay together: there are {len(groups)} videos or pictures"
    elif len(groups) < len(whole.names):
        why += f"; copies of a picture (NAME.rf.HASH) stay together: there are {len(groups)} pictures"
    reasons = {"train": "no split is there", "valid": why}
    chosen = {}
    for split, part in parts.items():
        listed: str | list[str] = list(part)
        file = output.with_name(f"{output.stem}_{split}.txt")
        in_file = len(part) > _INLINE_NAMES and all(name == name.strip() and name.isprintable() for name in part)
        if in_file:
            listed = str(file)
        named = place.model_copy(update={"videos": listed})
        chosen[split] = ChosenSplit(named, reasons[split], file if in_file else None, part, whole)
    return chosen


def choose_base(machine: Machine) -> tuple[str, str]:
    """The base to suggest for a machine, and why."""
    if machine.device.type == "cuda":
        there = _official_bases()
        for spec in there:
            if machine.memory >= (spec.gpu_memory or 0) * 2**30:
                return (
                    spec.name,
                    f"the largest official base here that suits {_gigabytes(machine.memory)} of GPU memory",
                )
        if there:
            return there[-1].name, "the smallest official base that is here"
        return (
            DEFAULT_MODEL,
            "no official base is here: checkpoints/download_ckpts.sh base_plus fetches one, for real work",
        )
    return DEFAULT_MODEL, "small enough to train without a GPU; for real work take an official base and a GPU"


def _official_bases() -> list[ModelSpec]:
    """Official bases whose weights are here, in the order in which they are preferred on a GPU."""
    suggested = [spec for spec in map(model_spec, model_names()) if spec.gpu_memory is not None]
    suggested.sort(key=lambda spec: spec.gpu_memory or 0, reverse=True)
    return [spec for spec in suggested if spec.checkpoint and find_file(spec.checkpoint).exists()]


def _shipped_yaml(model: str) -> Path:
    recipe = model_spec(model).recipe
    assert recipe is not None  # every base that is suggested has one
    return CONFIGS / recipe


def _model_settings(shipped: Config, machine: Machine, train: DatasetSummary, why: str) -> Iterator[Setting]:
    model = shipped.model
    yield Setting("model.name", model.name, why)
    yield Setting("model.checkpoint", model.checkpoint, "its weights")
    spec, side = model_spec(model.name), float(np.median(train.sides_M))
    size, needed = spec.image_size, int(np.ceil(WELL_SEEN / side / 64)) * 64
    most = LARGEST_SMALL.get(machine.device.type, 256) if spec.source_world else size
    chosen = max(size, min(needed, most, int(np.median(train.longest_sides_N)) // spec.stride * spec.stride))
    seen = f"half of the objects are smaller than {side * chosen:.0f} px there"
    if chosen > size:
        seen += f" (at its own {size}: {side * size:.0f})"
    if side * chosen < WELL_SEEN / 2:
        seen += ", which is little: crops of the images, or a larger base, would see them better"
    yield Setting("model.image_size", chosen, seen)
    lora = shipped.lora
    yield Setting(
        "lora.method", lora.method, f"{lora.experts} experts of rank {lora.rank}; lora and full are the others"
    )


def _data_settings(folder: Path, splits: dict[Split, ChosenSplit], damage: Damage) -> Iterator[Setting]:
    summaries = {split: chosen.summary for split, chosen in splits.items()}
    yield Setting("dataset.name", _domain_name(folder), "what tables call it")
    kind = summaries["train"].kind
    yield Setting("dataset.format", kind, f"recognised by the files: {_contents(summaries['train'])}; {_other(kind)}")
    for split, chosen in splits.items():
        prefix, place = "val" if split == "valid" else split, chosen.place
        yield Setting(f"dataset.{prefix}_img_folder", place.img_folder, f"{chosen.reason}: {_count(summaries[split])}")
        if place.ann_file is not None:
            yield Setting(f"dataset.{prefix}_ann_file", place.ann_file, "its annotations")
        if place.videos is not None:
            yield Setting(f"dataset.{prefix}_videos", place.videos, f"only these: {chosen.reason}")
    if ignored := splits["train"].place.ignore_categories:
        why = "void by their names: no objects, neither trained on nor scored; []: objects like the others"
        yield Setting("dataset.ignore_categories", ignored, why)
    if (threshold := splits["train"].place.mask_threshold) is not None:
        yield Setting("dataset.mask_threshold", threshold, "masks are black and white: what is brighter is the object")
    most = max(int(summary.objects_N.max()) for summary in summaries.values())
    kept = max(200, most)
    yield Setting("dataset.max_ann_per_img", kept, f"there are up to {most} objects in one")
    why = f"true: damaged entries are left out; a look met {damage} of {damage.listed}, training checks all"
    if damage.errors:
        why = f"{damage}; true: they are left out, and listed in skipped.json; false: training stops"
    yield Setting("dataset.skip_bad", bool(damage.errors), why)


def _clip_settings(shipped: Config, train: DatasetSummary) -> Iterator[Setting]:
    clip, frames = shipped.dataset.clip, int(np.median(train.frames_N))
    if train.stills:
        yield Setting("dataset.clip.frames", clip.frames, "stills become clips of this length by simulated motion")
    else:
        length = max(2, min(clip.frames, frames))
        yield Setting("dataset.clip.frames", length, f"videos have {_spread(train.frames_N)} frames")
        stride = int(np.clip(frames // (4 * length), 1, 4))
        why = f"clips then span up to {(length - 1) * stride + 1} frames"
        if train.annotated_N.sum() < train.frames_N.sum():
            why += f"; {train.annotated_N.sum() / train.frames_N.sum():.0%} of the frames are labelled"
        yield Setting("dataset.clip.max_stride", stride, why)
    objects = int(np.clip(np.median(train.objects_N), 1, clip.max_objects))
    where = "an image" if train.stills else "a video"
    yield Setting("dataset.clip.max_objects", objects, f"drawn per clip; {where} has {_spread(train.objects_N)}")


def _training_settings(shipped: Config, machine: Machine, summaries: dict[Split, DatasetSummary]) -> Iterator[Setting]:
    training, listed = shipped.training, summaries["train"].count
    clips = max(256, listed)
    epochs = int(np.clip(round(CLIPS_IN_ALL / clips), 2, training.max_epochs))
    yield Setting("training.max_epochs", epochs, f"of {clips} clips or a few more each; the best one is kept")
    batch = training.batch_size
    yield Setting("training.batch_size", batch, f"whether it fits: {PROGRAM} dry-run measures it")
    steps = training.gradient_accumulation_steps
    yield Setting("training.gradient_accumulation_steps", steps, f"so a step learns from {batch * steps} clips")
    yield Setting("training.learning_rate", training.learning_rate, f"that of {shipped.model.name}'s shipped YAML")
    recompute = training.activation_checkpointing
    yield Setting("training.activation_checkpointing", recompute, "true: less memory, more time")
    yield from _prompt_settings(shipped)
    workers = int(np.clip(machine.cores - 1, 0, 4))
    why = "one for each core but one, up to 4" if workers else "there is one core only, and training takes it"
    yield Setting("training.num_workers", workers, why)


def _prompt_settings(shipped: Config) -> Iterator[Setting]:
    """With the bundled base the prompt of evaluation alone; with an official one what its shipped YAML has."""
    if model_spec(shipped.model.name).source_world is None:
        return
    why = "as evaluation.prompt: on new pictures this base mistakes many boxes and clicks, and memory cannot mend that"
    for prompt in get_args(Prompt):
        used = prompt == shipped.evaluation.prompt
        yield Setting(f"training.prompts.{prompt}", float(used), why if used else "")


def _evaluation_settings(machine: Machine, summaries: dict[Split, DatasetSummary]) -> Iterator[Setting]:
    valid = summaries["valid"].count
    if machine.device.type == "cpu" and valid > MOST_VALIDATED:
        why = f"of {valid} validation videos or images: they are scored after each epoch, and there is no GPU"
        yield Setting("evaluation.max_images", MOST_VALIDATED, why)
    else:
        yield Setting("evaluation.max_images", None, f"all {valid} validation videos or images are scored")


def _headline(folder: Path, summaries: dict[Split, DatasetSummary], machine: Machine, output: Path) -> list[str]:
    counts = "; ".join(f"{split}: {_count(summary)}" for split, summary in summaries.items())
    return [
        f"For the data in {folder} ({counts}),",
        f"on a machine with {machine.name}, {_gigabytes(machine.memory)} of memory free, cores: {machine.cores}.",
        f"First: {PROGRAM} dry-run --config {output}. Every key: docs/config.md.",
    ]


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


_OTHER_FORMATS = {
    "folder": "davis reads the pictures of a folder as frames of a video",
    "davis": "folder reads each frame as a picture of its own",
    "coco": "ytvis reads the pictures as frames of videos, by their track ids",
    "ytvis": "coco reads each frame as a picture of its own",
}


def _other(kind: str) -> str:
    """How to overrule the format that was recognised."""
    return _OTHER_FORMATS.get(kind, f"if that is wrong, one of {', '.join(format_names())}")


def _contents(summary: DatasetSummary) -> str:
    """What a data set was read as."""
    about = "" if summary.listed == len(summary.names) else "about "
    objects = round(summary.objects_N.mean() * summary.count)
    frames = "" if summary.stills else f" of {_spread(summary.frames_N)} frames"
    return f"{_count(summary)}{frames}, {about}{_plural(objects, 'object')}"


def _count(summary: DatasetSummary) -> str:
    what = "images" if summary.stills else "videos"
    return f"{summary.count} {what if summary.count > 1 else what[:-1]}"


def _spread(counts_N: np.ndarray) -> str:
    low, high = int(counts_N.min()), int(counts_N.max())
    return str(low) if low == high else f"{low} to {high} (median {int(np.median(counts_N))})"


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.0f} GB"


def _domain_name(folder: Path) -> str:
    """The folder's name as a domain may be called; of a link its own."""
    name = re.sub(r"[/\\]", "_", Path(os.path.abspath(folder)).name).rstrip(". ") or "target"
    return f"{name}_data" if name in TAKEN_NAMES else name


def _render(settings: list[Setting], shipped: Config, headline: list[str]) -> str:
    """The YAML: the settings with their reasons, then what else the shipped YAML sets, section by section."""
    chosen = {setting.key: setting for setting in settings}
    written = _with_shipped(settings, shipped)
    lines = [f"# {one_line(line)}" for line in headline]  # names in them come from data
    open_sections: list[str] = []
    for key, value in written:
        *sections, name = key.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(open_sections, sections, strict=False)) if a != b), None)
        shared = min(len(open_sections), len(sections)) if shared is None else shared
        for depth in range(shared, len(sections)):
            lines.append(f"{'  ' * depth}{sections[depth]}:")
        open_sections = sections
        indent = "  " * len(sections)
        line = f"{indent}{name}: {one_line_yaml(value)}"
        reason = one_line(chosen[key].reason) if key in chosen else ""
        if reason and len(line) + len(reason) + 4 > _WIDTH:
            lines += [f"{indent}# {reason}", line]
        else:
            lines.append(f"{line}  # {reason}" if reason else line)
    return "\n".join(lines) + "\n"


def _with_shipped(settings: list[Setting], shipped: Config) -> list[tuple[str, Any]]:
    """Keys and values in the order of the schema: the settings, and what the shipped config sets beside them."""
    values = {setting.key: setting.value for setting in settings}
    replaced = ("dataset.domains", "evaluation.domains")
    for key, value in _leaves(shipped.model_dump(mode="json", exclude_unset=True)):
        if not key.startswith(replaced):
            values.setdefault(key, value)
    order = [key for key, _ in _leaves(Config().model_dump(mode="json"))]
    ranks = {key: rank for rank, key in enumerate(order)}
    first_domain = ranks["dataset.domains"]  # whose keys are written in flat form
    return sorted(values.items(), key=lambda item: ranks.get(item[0], first_domain))


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
