"""Keys with other names: those that a domain's splits may be written under, and those of earlier versions.

Every config passes through :func:`modernize` before it is checked: YAML files, ``--set``, and the configs in
checkpoints. Inside the program there is one name for each key, and one shape for a domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "training.clips_per_image": "training.clips_per_epoch",
    "training.overlay_clips": "training.monitor_clips",
    "training.watch_clips": "training.monitor_clips",
    "training.save_every_steps": "training.save_every.steps",
    "training.save_every_minutes": "training.save_every.minutes",
    "training.save_every_epochs": "training.save_every.epochs",
    "training.strengths": "training.adapter_scales",
    "training.cache_features.where": "training.cache_features.store",
}
"""Keys of earlier versions and their names today; each is logged where a YAML has it."""

ALIASES: Mapping[str, str] = {"dataset.resolution": "model.image_size"}
"""Second names that stay, which those who come from SAM3-LoRA know."""

OTHER_SECTIONS: Mapping[str, str] = {
    "moe": "its keys are in lora here: num_experts is lora.experts, lora_rank is lora.rank, top_k is lora.top_k, "
    "lora_alpha is lora.alpha, lora_dropout is lora.dropout, with lora.method: mope",
}
"""Sections of other programs' YAMLs, and where their keys are."""

SPLIT_KEYS: Mapping[str, tuple[str, str]] = {
    f"{split}_{key}": (split, key) for split in ("train", "val", "test") for key in ("img_folder", "ann_file", "videos")
}
"""Flat names for the keys of a domain's splits, such as ``train_img_folder``."""

FLAT_KEYS = ("name", "weight", "license", "format", "categories", "ignore_categories", "mask_threshold", *SPLIT_KEYS)
"""Keys that ``dataset`` itself may have in place of its first domain."""

FIRST_DOMAIN: Mapping[str, Any] = {
    "train": {"img_folder": "data/sample/train"},
    "val": {"img_folder": "data/sample/valid"},
}
"""The first domain, as far as nothing else is said about it."""


def modernize(raw: dict[str, Any]) -> dict[str, str]:
    """Give the keys of a whole config the names that the schema has, in place.

    Args:
        raw: sections by name; values of a wrong kind are left for the schema to refuse.

    Returns:
        The dotted name in ``raw`` → today's, for each key that had another one.

    Raises:
        ValueError: two names of one key have different values.
    """
    renamed = _gather_domains(raw.get("dataset"))
    given = {new for new in RENAMED.values() if _holder(raw, new)[0] is not None}
    for old, new in {**ALIASES, **RENAMED}.items():
        section, key = _holder(raw, old)
        if section is not None:
            _move(raw, old, section.pop(key), new, new in given)
            renamed[old] = new
    return renamed


def nest_splits(domain: dict[str, Any]) -> dict[str, str]:
    """Turn the flat keys of a domain's splits into nested ones, in place; return flat name → nested name."""
    renamed: dict[str, str] = {}
    for flat, (split, key) in SPLIT_KEYS.items():
        if flat not in domain:
            continue
        if not isinstance(domain.get(split), dict):
            domain[split] = {"img_folder": None}  # a split without images is none
        domain[split][key] = domain.pop(flat)
        renamed[flat] = f"{split}.{key}"
    return renamed


def former_keys(section: str) -> dict[str, str]:
    """Return the other names that keys of a section have, each with its dotted name today."""
    names = {**ALIASES, **RENAMED}
    found = {old.rpartition(".")[2]: new for old, new in names.items() if old.rpartition(".")[0] == section}
    if section == "dataset":
        found |= {key: key for key in (*FLAT_KEYS, "more")}
    elif section.startswith("dataset.domains."):
        found |= {key: key for key in SPLIT_KEYS}
    return found


def drop_renamed(raw: dict[str, Any], dotted: str) -> None:
    """Remove the value of the key that an older name stands for, which is about to be set."""
    section, key = _holder(raw, {**ALIASES, **RENAMED}.get(dotted, ""))
    if section is not None:
        del section[key]


def _gather_domains(dataset: Any) -> dict[str, str]:
    """Bring the domains of a section ``dataset`` into one list, in place; return name as written → new name."""
    if not isinstance(dataset, dict):
        return {}
    flat = {key: dataset[key] for key in FLAT_KEYS if key in dataset}
    if (flat or "more" in dataset) and "domains" not in dataset:
        dataset["domains"] = [{split: dict(place) for split, place in FIRST_DOMAIN.items()}]
    domains = dataset.get("domains")
    if not isinstance(domains, list) or not all(isinstance(domain, dict) for domain in domains[:1]):
        return {}
    renamed: dict[str, str] = {}
    places = [f"dataset.domains.{i}" for i in range(len(domains))]
    if "more" in dataset:
        more = dataset.pop("more")
        if not isinstance(more, list):
            dataset["domains"] = more
            return {"dataset.more": "dataset.domains"}
        domains[1:] = more
        places[1:] = [f"dataset.more.{i}" for i in range(len(more))]
        renamed |= {place: f"dataset.domains.{i + 1}" for i, place in enumerate(places[1:])}
    if flat and domains:
        nest_splits(domains[0])
        domains[0] |= {key: dataset.pop(key) for key in flat}
        places[0] = "dataset"
        renamed |= {f"dataset.{key}": f"dataset.domains.0.{key}" for key in flat if key not in SPLIT_KEYS}
    for i, (domain, place) in enumerate(zip(domains, places, strict=True)):
        names = nest_splits(domain) if isinstance(domain, dict) else {}
        renamed |= {f"{place}.{old}": f"dataset.domains.{i}.{new}" for old, new in names.items()}
    return renamed


def _holder(raw: Any, dotted: str) -> tuple[dict[str, Any] | None, str]:
    """Return the mapping that holds a key, and the key's own name; None where the key is not given."""
    *sections, key = dotted.split(".")
    for part in sections:
        raw = raw.get(part) if isinstance(raw, dict) else None
    return (raw, key) if isinstance(raw, dict) and key in raw else (None, key)


def _move(raw: dict[str, Any], old: str, value: Any, new: str, given: bool) -> None:
    """Set a key to what its older name said.

    Args:
        raw: sections by name.
        old: older name, dotted.
        value: what it said.
        new: name of today, dotted.
        given: whether the key was given by that name, too, and not only by older ones.

    Raises:
        ValueError: the two names say different things.
    """
    *sections, key = new.split(".")
    section: Any = raw
    for part in sections:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return  # a mistake, which the schema reports
    current = section.get(key)
    if old == "training.clips_per_image":
        value = f"{value}x" if isinstance(value, int) else value
        value = value if current is None else current
    elif new == "training.monitor_clips" and not given and isinstance(current, int) and isinstance(value, int):
        value = max(current, value)
    elif old in ALIASES and value is None:
        value = current
    elif current is not None and current != value:
        raise ValueError(f"{new} and {old} are one key, but their values differ: give {new} alone")
    section[key] = value
