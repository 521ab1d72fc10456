"""The domain gate: does this video belong to a domain that adapters were trained for?

    gate = DomainGate(base_fingerprint(model))
    gate.fit("polyps", features_NVD)          # N images in V views, each described by D numbers
    decision = gate.decide(features_D)
    decision.domain                           # "polyps", or None: leave the base model as it is

A domain is known by the frozen encoder's features of its images, each in several photometric augmentations. An image's
distance is the mean of those to its three nearest views, every feature in units of its deviation over the domain. The
domain ends about where 95 % of its own images are, each measured from the others. This is estimated as if distances
were log-normal, from their median and their median absolute deviation: with 10 to 40 images a percentile would hang on
one or two odd ones.
``docs/domain_gate.md`` compares this with other ways.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import GATE_MODES
from ..core.errors import UserError
from ..core.files import write_atomically
from ..core.hub import find_folder
from ..lora.adapter_io import CHECKSUM, fingerprint, refuse_not_finite

GATE_FILE = "domain_gate.safetensors"
FORMAT_VERSION = 2
_FOLDS = 8
_NEAREST = 3
_NORMAL_95 = 1.645
"""The 95th percentile of a standard normal distribution."""
_MAD_OF_NORMAL = 0.6745
"""Its median absolute deviation."""
_PARTS = ("mean", "deviation", "views")


@dataclass(frozen=True)
class Decision:
    """The domain gate's decision on an image.

    Attributes:
        domain: the domain that the image belongs to (the nearest of several); None if to none.
        distances: domain → distance in units of its threshold: 1 and below is inside. Empty where none was measured.
    """

    domain: str | None
    distances: dict[str, float]


@dataclass(frozen=True)
class KnownDomain:
    """A domain that the gate was fitted to.

    Attributes:
        mean: (D,), float32, of all views.
        deviation: (D,), float32, of all views: the unit of each feature.
        views: (M, D), float16: all views of all images, less the mean and in units of the deviation.
        threshold: the distance at which the domain ends.
    """

    mean: Tensor
    deviation: Tensor
    views: Tensor
    threshold: float

    @classmethod
    def fit(cls, features_NVD: Tensor) -> KnownDomain:
        """Keep all views; the threshold is from those of images held out, in eight folds."""
        count = min(_FOLDS, len(features_NVD))
        folds = torch.arange(len(features_NVD)) % count
        held_out = [
            _known(features_NVD[folds != fold]).distance(features_NVD[folds == fold].flatten(0, 1))
            for fold in range(count)
        ]
        return replace(_known(features_NVD), threshold=robust_end(torch.cat(held_out)))

    def distance(self, features_BD: Tensor) -> Tensor:
        """Return mean distances to the three nearest views, float64 (B,)."""
        x_BD = (features_BD.double() - self.mean.double()) / self.deviation.double()
        distances_BM = torch.cdist(x_BD, self.views.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return distances_BM.topk(min(_NEAREST, len(self.views)), largest=False).values.mean(dim=1)


class DomainGate:
    """Decides which known domain an image belongs to, if any.

    Args:
        base_fingerprint: :func:`~src.lora.adapter_io.base_fingerprint` of the model whose features it gets.

    Attributes:
        domains: the known domains by name.
    """

    def __init__(self, base_fingerprint: str) -> None:
        self.base_fingerprint = base_fingerprint
        self.domains: dict[str, KnownDomain] = {}

    def fit(self, name: str, features_NVD: Tensor) -> None:
        """Fit a domain to its images; one of that name is replaced, and others do not change.

        Args:
            name: the domain's name in decisions, such as its expert group's.
            features_NVD: features of N images in V views each.

        Raises:
            UserError: the name is a mode's, there are fewer than 2 images, or features are not finite.
            ValueError: D is not that of the other domains.
        """
        if name in GATE_MODES or not name:
            raise UserError(f"domain gate: a domain cannot be called '{name}'; choose another name", code="gate.name")
        if len(features_NVD) < 2:
            raise UserError(
                f"domain gate: domain '{name}' has {len(features_NVD)} images, but fitting needs at least 2",
                code="gate.few-images",
            )
        if not features_NVD.isfinite().all():
            raise UserError(
                f"domain gate: features of domain '{name}' are not finite; check the base weights",
                code="gate.not-finite",
            )
        for other, domain in self.domains.items():
            if domain.mean.shape != features_NVD.shape[-1:]:
                raise ValueError(f"{features_NVD.shape[-1]} features, but domain '{other}' has {len(domain.mean)}")
        self.domains[name] = KnownDomain.fit(features_NVD.double().cpu())

    def remove(self, name: str) -> None:
        """Remove a domain. Raises UserError where it is not known."""
        self.check_name(name)
        del self.domains[name]

    def check_name(self, name: str) -> None:
        """Raise UserError unless the domain is known."""
        if name not in self.domains:
            known = ", ".join(self.domains) or "none"
            raise UserError(f"domain gate: no domain '{name}'; known: {known}", code="gate.unknown-domain")

    def decide(self, features_D: Tensor) -> Decision:
        """Decide which domain an image with these features belongs to."""
        distances = self.distances(features_D)
        nearest = min(distances, key=distances.__getitem__, default=None)
        return Decision(nearest if nearest is not None and distances[nearest] <= 1 else None, distances)

    def decide_nearest(self, features_D: Tensor) -> Decision:
        """Decide for the nearest domain, however far it is; None only where no domain is known."""
        distances = self.distances(features_D)
        return Decision(min(distances, key=distances.__getitem__, default=None), distances)

    def distances(self, features_D: Tensor) -> dict[str, float]:
        """Return domain → distance in units of its threshold. Raises UserError for features of another model."""
        features_1D = features_D[None].cpu()
        for name, domain in self.domains.items():
            if domain.mean.shape != features_D.shape:
                raise UserError(
                    f"domain gate: domain '{name}' is described by {len(domain.mean)} numbers, but this model gives "
                    f"{len(features_D)}; take the gate of this model",
                    code="gate.shapes",
                )
        return {name: float(d.distance(features_1D)) / d.threshold for name, d in self.domains.items()}

    def save(self, folder: str | Path) -> None:
        """Write ``domain_gate.safetensors`` into an adapter folder, whole or not at all.

        Its metadata hold format version, base fingerprint and each domain's threshold as JSON.
        """
        tensors = {}
        for name, domain in self.domains.items():
            tensors.update({f"{name}.{part}": getattr(domain, part) for part in _PARTS})
        metadata: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "base_fingerprint": self.base_fingerprint,
            "thresholds": {name: domain.threshold for name, domain in self.domains.items()},
        }
        metadata[CHECKSUM] = _checksum(metadata, tensors)
        text = {"domain_gate": json.dumps(metadata, ensure_ascii=False)}
        write_atomically(Path(folder) / GATE_FILE, lambda path: save_file(tensors, path, text))

    @classmethod
    def beside(cls, folder: str | Path, base_fingerprint: str) -> DomainGate | None:
        """:meth:`load`; None where the folder has no gate."""
        folder = find_folder(folder)
        return cls.load(folder, base_fingerprint) if os.path.lexists(folder / GATE_FILE) else None

    @classmethod
    def load(cls, folder: str | Path, base_fingerprint: str) -> DomainGate:
        """Read a gate that :meth:`save` wrote.

        Args:
            folder: an adapter folder.
            base_fingerprint: fingerprint of the model that the gate will decide for.

        Raises:
            UserError: the file is missing or damaged, was fitted on another base, or has keys missing or left over.
        """
        path = Path(folder) / GATE_FILE
        metadata, tensors = _read(path)
        found = metadata["base_fingerprint"]
        if found != base_fingerprint:
            raise UserError(
                f"{path}: this domain gate was fitted on another base, {found[:12]}; "
                f"this model's base weights are {base_fingerprint[:12]}; set model.checkpoint to the gate's base",
                code="gate.other-base",
            )
        expected = {f"{name}.{part}" for name in metadata["thresholds"] for part in _PARTS}
        if differing := sorted(expected ^ tensors.keys()):
            raise UserError(f"{path}: keys missing or left over: {', '.join(differing)}", code="gate.keys")
        gate = cls(found)
        for name, threshold in metadata["thresholds"].items():
            mean, deviation, views = (tensors[f"{name}.{part}"] for part in _PARTS)
            size = len(next(iter(gate.domains.values())).mean) if gate.domains else mean.numel()
            if not (mean.shape == deviation.shape == (size,) and views.shape[1:] == (size,) and views.numel()):
                raise UserError(f"{path}: shapes of domain '{name}' do not fit each other", code="gate.shapes")
            if not (deviation > 0).all():
                raise UserError(f"{path}: a deviation of domain '{name}' is not positive", code="gate.metadata")
            gate.domains[name] = KnownDomain(mean, deviation, views, threshold)
        return gate


def _known(features_NVD: Tensor) -> KnownDomain:
    """Return a domain without a threshold."""
    x = features_NVD.flatten(0, 1)
    mean, deviation = x.mean(dim=0).float(), (x.std(dim=0) + 1e-6).float()
    views = (x - mean.double()) / deviation.double()
    return KnownDomain(mean, deviation, views.half(), threshold=float("nan"))


def robust_end(held_out: Tensor) -> float:
    """Return the distance that 95 % of a domain's images are within, from its median and its spread, both robust."""
    logs = held_out.clamp(min=1e-6).log()  # 0 where images are the same
    spread = (logs - logs.median()).abs().median() / _MAD_OF_NORMAL
    return float((logs.median() + _NORMAL_95 * spread).exp())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read metadata and tensors of a gate file."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; a domain gate is saved in the adapter folder under this name",
            code="gate.missing-file",
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("domain_gate", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file: {error}", code="gate.damaged") from None
    if mistake := _metadata_mistake(metadata):
        raise UserError(f"{path}: {mistake}", code="gate.metadata")
    checksum = metadata.pop(CHECKSUM, None)  # which files of earlier versions lack
    if checksum is not None and checksum != _checksum(metadata, tensors):
        raise UserError(
            f"{path}: damaged: it is not what was written, by its checksum; take another copy of the adapter folder",
            code="gate.damaged",
        )
    refuse_not_finite(path, tensors, "gate.not-finite")
    return metadata, tensors


def _checksum(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return a SHA-256 of all that a file holds."""
    return hashlib.sha256(f"{json.dumps(metadata, sort_keys=True)} {fingerprint(tensors)}".encode()).hexdigest()


def _metadata_mistake(metadata: Any) -> str | None:
    if isinstance(metadata, dict) and metadata.get("format_version") == 1:
        return (
            "of an earlier version, which separated domains in another way; move it away, and fit a new one with "
            "fit_gate (docs/domain_gate.md) or by training again"
        )
    if not isinstance(metadata, dict) or metadata.get("format_version") != FORMAT_VERSION:
        return f"not a domain gate of format_version {FORMAT_VERSION}"
    thresholds = metadata.get("thresholds")
    if not isinstance(metadata.get("base_fingerprint"), str) or not isinstance(thresholds, dict):
        return "base_fingerprint or thresholds are missing"
    if not all(isinstance(threshold, float) and 0 < threshold < math.inf for threshold in thresholds.values()):
        return "a threshold is not a positive number"
    return None
