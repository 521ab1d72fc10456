"""How well ways to decide tell a new domain from the rest: shares of wrong decisions.

Each synthetic domain but the source is the known one in turn. Wrongly rejected: held-out images of it, as they are and
darker, brighter, noisier, blurred. Wrongly accepted: images of the source and of the other new domains, as they are and
in every shift, and frames of mere noise. Balanced accuracy gives both sides half the weight, and of the accepted half
half to the source. ``docs/domain_gate.md`` says what the ways are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from scipy.optimize import minimize
from torch import Tensor

from src import cli
from src.config import ModelConfig
from src.data.decode.masks import bounding_box
from src.data.records import VideoRecord
from src.data.synthetic import (
    CELLS,
    FLAKES,
    HELD_OUT_SEED,
    SAME_DOMAIN,
    SHIFTS,
    SOURCE,
    THERMAL,
    TISSUE,
    Domain,
    ShiftKind,
    make_videos,
    mixed,
    shifted,
)
from src.gating.domain_gate import KnownDomain
from src.gating.fit import VIEWS, photometric_jitter
from src.models.sam2.build import build_model
from src.models.sam2.gate_hooks import gate_features, to_pixels
from src.models.sam2.pixels import FAMILY

NEW = (CELLS, TISSUE, THERMAL, FLAKES)
ALL_LOOKS: tuple[ShiftKind | Literal[""], ...] = ("", *SHIFTS)
OWN_LOOKS: tuple[ShiftKind | Literal[""], ...] = ("", *SAME_DOMAIN)
FOLDS = 4
CROPS = 8  # views of a part of an image
LAST_MEAN = slice(-128, -64)  # of the features of the bundled base, which has 64 channels

Score = Callable[[Tensor], Tensor]  # features (B, D) → (B,), the higher the farther
Fit = Callable[[Tensor, Tensor], Score]  # views of a domain (N, V, D), of the source (M, D)
Describe = Callable[[SAM2Base, Tensor, tuple[float, ...]], Tensor]  # images (B, 3, S, S), box in 0–1 → (B, D)


def as_is(model: SAM2Base, pixels_B3SS: Tensor, box: tuple[float, ...] = (0, 0, 1, 1)) -> Tensor:
    """Mean and deviation of the levels' channels inside a box, of the images as they are exposed."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (FAMILY.pixel_mean, FAMILY.pixel_std))
    parts = []
    for level in model.forward_image((pixels_B3SS - mean) / std)["backbone_fpn"]:
        side = level.shape[-1]
        x0, y0 = (min(int(v * side), side - 2) for v in box[:2])
        x1, y1 = (max(int(np.ceil(v * side)), low + 2) for v, low in zip(box[2:], (x0, y0), strict=True))
        parts += [f(level[..., y0:y1, x0:x1], dim=(2, 3)) for f in (torch.mean, torch.std)]
    return torch.cat(parts, dim=1)


def whole(model: SAM2Base, pixels_B3SS: Tensor, _: tuple[float, ...]) -> Tensor:
    return as_is(model, pixels_B3SS)


def even(model: SAM2Base, pixels_B3SS: Tensor, _: tuple[float, ...]) -> Tensor:
    return gate_features(model, pixels_B3SS)


def gaussian_of_last(x_NVD: Tensor, source_MD: Tensor) -> Score:
    """A Gaussian over the mean of the last level alone."""
    inner = gaussian(x_NVD[..., LAST_MEAN], source_MD)
    return lambda x: inner(x[..., LAST_MEAN])


def gaussian(x_NVD: Tensor, _: Tensor) -> Score:
    """The Mahalanobis distance to all views."""
    mean, whitening = fit_gaussian(x_NVD)
    return lambda x: torch.linalg.vector_norm((x - mean) @ whitening.T, dim=-1)


def fit_gaussian(x_NVD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all views, and what makes their covariance the identity."""
    x = x_NVD.flatten(0, 1)
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    values, vectors = torch.linalg.eigh(shrunk_covariance((x - mean) / deviation))
    return mean, (vectors / values.clamp(min=1e-9).sqrt()).T / deviation


def shrunk_covariance(centred_ND: Tensor) -> Tensor:
    """Return Ledoit and Wolf's covariance (2004): the sample's, shrunk towards a multiple of the identity, (D, D).

    The amount of shrinkage is estimated from the data, such that the expected squared error is least.
    """
    n, d = centred_ND.shape
    sample = centred_ND.T @ centred_ND / n
    identity = torch.eye(d, dtype=sample.dtype)
    scale = sample.trace() / d
    spread = (sample - scale * identity).square().sum()
    error = (centred_ND.square().sum(dim=1).square().sum() / n - sample.square().sum()) / n
    share = (error / spread).clamp(0, 1) if spread > 0 else torch.ones_like(spread)
    return share * scale * identity + (1 - share) * sample


def nearest_views(x_NVD: Tensor, _: Tensor) -> Score:
    """The mean distance to the three nearest views, every feature in units of its deviation."""
    views = x_NVD.flatten(0, 1)
    deviation = views.std(dim=0) + 1e-6
    return lambda x: torch.cdist(x / deviation, views / deviation).topk(3, largest=False).values.mean(dim=1)


def without_light(x_NVD: Tensor, source_MD: Tensor, directions: int = 16) -> Score:
    """A Gaussian across the directions in which views of one image differ most (nuisance attribute projection)."""
    deviation = x_NVD.flatten(0, 1).std(dim=0) + 1e-6
    within = ((x_NVD - x_NVD.mean(dim=1, keepdim=True)) / deviation).flatten(0, 1)
    rest = torch.linalg.eigh(within.T @ within)[1][:, :-directions] / deviation[:, None]
    inner = gaussian(x_NVD @ rest, source_MD)
    return lambda x: inner(x @ rest)


def neighbours(x_NVD: Tensor, _: Tensor, count: int = 5) -> Score:
    """The mean distance to the nearest views, in the whitened space."""
    whitening = fit_gaussian(x_NVD)[1].T
    views = x_NVD.flatten(0, 1) @ whitening
    return lambda x: torch.cdist(x @ whitening, views).topk(count, largest=False).values.mean(dim=1)


def relative(x_NVD: Tensor, source_MD: Tensor) -> Score:
    """How much farther from the domain than from the source (Ren et al., 2021)."""
    own, other = gaussian(x_NVD, source_MD), gaussian(source_MD[:, None], source_MD)
    return lambda x: own(x).square() - other(x).square()


def logistic(x_NVD: Tensor, source_MD: Tensor) -> Score:
    """The logit of being the source, fitted with both sides of equal weight."""
    x = torch.cat([x_NVD.flatten(0, 1), source_MD])
    mean, deviation = x.mean(dim=0), x.std(dim=0) + 1e-6
    x_ND1 = torch.nn.functional.pad((x - mean) / deviation, (0, 1), value=1.0).numpy()
    is_source = np.arange(len(x)) >= len(x) - len(source_MD)
    sign, weight = np.where(is_source, 1, -1), np.where(is_source, 0.5 / is_source.sum(), 0.5 / (~is_source).sum())

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x_ND1 @ beta)
        slope = weight * sign / (1 + np.exp(np.clip(margin, -50, 50)))
        return (weight * np.logaddexp(0, -margin)).sum() + 1e-4 * beta @ beta, 2e-4 * beta - slope @ x_ND1

    start = np.zeros(x_ND1.shape[1])
    beta = torch.from_numpy(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x)
    return lambda y: (y - mean) / deviation @ beta[:-1] + beta[-1]


@dataclass(frozen=True)
class Way:
    """A way to decide: what it knows of an image, from how many views it learns, and its scores.

    An image is inside if each score is: a score that ``fixed`` holds below 0, another below the percentile of the
    domain's held-out views. The built-in way (``built_in``) is the product's own code.
    """

    title: str
    gate_features: Describe
    views: int
    fits: tuple[Fit, ...]
    fixed: tuple[Fit, ...] = ()
    around_object: bool = False
    built_in: bool = False

    def fit(self, x_NVD: Tensor, source_MD: Tensor, percentile: float) -> Callable[[Tensor], Tensor]:
        """Learn a domain; what comes back maps features (B, D) to bool (B,)."""
        x_NVD, source_MD = x_NVD[:, : 1 + self.views].double(), source_MD.double()
        if self.built_in:
            domain = KnownDomain.fit(x_NVD)
            return lambda x_BD: domain.distance(x_BD) <= domain.threshold
        judged_NVD = x_NVD[:, : 1 + VIEWS]
        fold = torch.arange(len(x_NVD)) % FOLDS
        limits: list[tuple[Score, float]] = [(fit(x_NVD, source_MD), 0.0) for fit in self.fixed]
        for fit in self.fits:
            held_out = [fit(x_NVD[fold != k], source_MD)(judged_NVD[fold == k].flatten(0, 1)) for k in range(FOLDS)]
            limit = float(np.percentile(torch.cat(held_out).double().numpy(), percentile))
            limits.append((fit(x_NVD, source_MD), limit))
        return lambda x_BD: torch.stack([score(x_BD.double()) <= limit for score, limit in limits]).all(dim=0)


WAYS = (
    Way("Gaussian, mean of the last level", whole, 0, (gaussian_of_last,)),
    Way("Gaussian, all levels", whole, 0, (gaussian,)),
    Way("… with augmentations", whole, VIEWS, (gaussian,)),
    Way("… without directions of light", whole, VIEWS, (without_light,)),
    Way("… nearest neighbours", whole, VIEWS, (neighbours,)),
    Way("… around the object only", as_is, VIEWS, (gaussian,), around_object=True),
    Way("… relative to the source", whole, VIEWS, (relative,)),
    Way("… logistic against the source", whole, VIEWS, (), (logistic,)),
    Way("… Gaussian and logistic", whole, VIEWS, (gaussian,), (logistic,)),
    Way("even exposure, Gaussian, as it is", even, 0, (gaussian,)),
    Way("even exposure, Gaussian, with augmentations", even, VIEWS, (gaussian,)),
    Way("… Gaussian and logistic, even exposure", even, VIEWS, (gaussian,), (logistic,)),
    Way("even exposure, nearest views", even, VIEWS, (nearest_views,)),
    Way("… with crops", even, VIEWS + CROPS, (nearest_views,)),
    Way("even exposure, nearest views, robust end", even, VIEWS, (), built_in=True),
)
SHIPPED = WAYS[-1].title


class Images:
    """The sets of images and what the encoder says of them, computed once."""

    def __init__(self, model: SAM2Base, count: int, train: int) -> None:
        self.model, self.count, self.train = model, count, train
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def test(self, way: Way, domain: Domain, kind: ShiftKind | Literal[""]) -> Tensor:
        """Held-out images of a domain, shifted or not, (B, D)."""
        shown = shifted(domain, kind) if kind else domain
        key = way.gate_features, way.around_object, shown.name
        if key not in self._known:
            self._known[key] = self._describe(way, make_videos(shown, self.count, HELD_OUT_SEED, frames=1).videos)[:, 0]
        return self._known[key]

    def noise(self, way: Way) -> Tensor:
        """Frames of mere noise, grey and coloured, (B, D)."""
        rng, side = np.random.default_rng(0), self.model.image_size
        shape = [(self.count // 2, channels, side, side) for channels in (1, 3)]
        pixels = [torch.from_numpy(rng.random(s, np.float32)).expand(-1, 3, -1, -1) for s in shape]
        with torch.no_grad():
            return torch.cat([way.gate_features(self.model, half, (0.25, 0.25, 0.75, 0.75)) for half in pixels])

    def training(self, way: Way, domain: Domain) -> Tensor:
        """Training images of a domain, each in all its views, (N, 1 + VIEWS + CROPS, D)."""
        key = way.gate_features, way.around_object, domain.name, "train"
        if key not in self._known:
            self._known[key] = self._describe(way, make_videos(domain, self.train, 0, frames=1).videos, True)
        return self._known[key]

    @torch.no_grad()
    def _describe(self, way: Way, videos: Sequence[VideoRecord], in_views: bool = False) -> Tensor:
        rng, found = np.random.default_rng(0), []
        for video in videos:
            pixels = to_pixels(self.model, video.frames[0].read())
            box = _around(next(iter(video.masks(0).values()))) if way.around_object else (0.0, 0.0, 1.0, 1.0)
            images = [pixels]
            if in_views:
                images += [photometric_jitter(pixels, rng) for _ in range(VIEWS)]
                images += [random_part(pixels, rng) for _ in range(CROPS)]
            found.append(way.gate_features(self.model, torch.stack(images), box))
        return torch.stack(found)


def random_part(pixels_3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a square of 0.6 to 1 times the image's side, perhaps mirrored, at the image's size."""
    side = pixels_3SS.shape[-1]
    part = int(side * rng.uniform(0.6, 1))
    y, x = rng.integers(0, side - part + 1, 2)
    cut = pixels_3SS[None, :, y : y + part, x : x + part]
    cut = cut.flip([axis for axis in (-1, -2) if rng.random() < 0.5])
    return torch.nn.functional.interpolate(cut, size=(side, side), mode="bilinear", antialias=True)[0]


def _around(mask_HW: np.ndarray) -> tuple[float, ...]:
    """The mask's box, half as large again, in 0–1 of the image."""
    x0, y0, x1, y1 = bounding_box(mask_HW)
    height, width = mask_HW.shape
    mx, my = 0.25 * (x1 - x0 + 1), 0.25 * (y1 - y0 + 1)
    corners = ((x0 - mx) / width, (y0 - my) / height, (x1 + mx) / width, (y1 + my) / height)
    return tuple(float(np.clip(v, 0, 1)) for v in corners)


def fitted(images: Images, way: Way, known: Domain, percentile: float) -> Callable[[Tensor], Tensor]:
    """A way fitted to a domain: maps features (B, D) to bool (B,)."""
    general = [images.training(way, domain)[:, : 1 + VIEWS] for domain in (SOURCE, shifted(SOURCE, "grey"))]
    return way.fit(images.training(way, known), torch.cat(general).flatten(0, 1), percentile)


def wrong_shares(
    images: Images, way: Way, known: Domain, percentile: float
) -> tuple[dict[Any, float], dict[Any, float]]:
    """Wrongly rejected shares per set of the known domain, wrongly accepted ones per set of the others."""
    inside = fitted(images, way, known, percentile)

    def accepted(features: Tensor) -> float:
        return float(inside(features).double().mean())

    rejected = {kind or "as it is": 1 - accepted(images.test(way, known, kind)) for kind in OWN_LOOKS}
    others = [domain for domain in (SOURCE, *NEW) if domain is not known]
    taken = {
        f"{domain.name} {kind}".strip(): accepted(images.test(way, domain, kind))
        for domain in others
        for kind in ALL_LOOKS
    }
    return rejected, {**taken, "mere noise": accepted(images.noise(way))}


def balanced_accuracy(rejected: dict[str, float], taken: dict[str, float]) -> tuple[float, float, float, float]:
    """Balanced accuracy; mean shares of rejected own images, of accepted source images, and of accepted others."""
    own = float(np.mean(list(rejected.values())))
    source = float(np.mean([share for name, share in taken.items() if name.startswith("source")]))
    others = float(np.mean([share for name, share in taken.items() if not name.startswith("source")]))
    return 1 - (own + (source + others) / 2) / 2, own, source, others


def compare(images: Images, percentile: float) -> None:
    """The table of all ways."""
    print("| way | balanced accuracy: mean | worst domain | rejected | accepted, source | others | worst set |")
    print("|---|--:|--:|--:|--:|--:|---|")
    for way in cli.progress_bar(WAYS):
        shares = {known.name: wrong_shares(images, way, known, percentile) for known in NEW}
        scores = np.array([balanced_accuracy(*found) for found in shares.values()])
        sets = {
            (name, s, k): v for name, both in shares.items() for s, side in enumerate(both) for k, v in side.items()
        }
        name, side, kind = max(sets, key=sets.__getitem__)
        worst = f"{name}: {kind} {'accepted' if side else 'rejected'} {sets[name, side, kind]:.2f}"
        title = f"**{way.title}**" if way.title == SHIPPED else way.title
        means = " | ".join(f"{value:.3f}" for value in scores[:, 1:].mean(axis=0))
        print(f"| {title} | {scores[:, 0].mean():.3f} | {scores[:, 0].min():.3f} | {means} | {worst} |", flush=True)


def detail(images: Images, percentile: float) -> None:
    """Every set of the shipped way, and clips that mix a domain with the source."""
    way = next(way for way in WAYS if way.title == SHIPPED)
    columns: dict[str, dict[str, float]] = {}
    for known in NEW:
        rejected, taken = wrong_shares(images, way, known, percentile)
        inside = fitted(images, way, known, percentile)
        mixes = {
            "its objects before source": mixed(known, SOURCE),
            "source objects before it": mixed(SOURCE, known),
            "itself, grey": shifted(known, "grey"),
            "itself, textures": shifted(known, "textures"),
        }
        columns[known.name] = {
            "balanced accuracy": balanced_accuracy(rejected, taken)[0],
            **{f"rejected: {kind}": share for kind, share in rejected.items()},
            **{f"accepted: {kind}": share for kind, share in taken.items()},
            **{f"accepted: {k}": float(inside(images.test(way, d, "")).double().mean()) for k, d in mixes.items()},
        }
    print(f"\n| {SHIPPED} | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for row in dict.fromkeys(row for column in columns.values() for row in column):
        cells = (f"{column[row]:.2f}" if row in column else "" for column in columns.values())
        print(f"| {row} | {' | '.join(cells)} |")


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    model = build_model(ModelConfig(checkpoint=arguments.checkpoint)).eval()
    images = Images(model, arguments.images, arguments.train)
    print(f"{arguments.train} training images a domain, {arguments.images} images a set, {arguments.percentile:g} %\n")
    compare(images, arguments.percentile)
    detail(images, arguments.percentile)


if __name__ == "__main__":
    parser = cli.parser(__doc__.splitlines()[0], "python -m benchmarks.domain_gate --train 16")
    parser.add_argument(
        "--checkpoint", default="checkpoints/sam2_nano.safetensors", help="of sam2_nano (default: the bundled base)"
    )
    parser.add_argument("--train", type=int, default=64, help="training images of a domain (default: 64)")
    parser.add_argument("--images", type=int, default=60, help="images of a set (default: 60)")
    parser.add_argument("--percentile", type=float, default=95.0, help="of own held-out views to accept (default: 95)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    cli.run(main, parser)
