"""Synthetic videos with exact masks: what the bundled nano model is pre-trained on, and what the tests and samples use.

A :class:`Domain` says what a world looks like; :func:`make_video` draws one video of it from a seed. Objects are
star-shaped outlines (a radius per angle), filled with a texture that moves with them and drawn back to front with soft
edges; the mask of an object is what is left visible of it.

- ``SOURCE``: opaque, textured, coloured shapes over textured backgrounds, with distractors, occlusion, camera motion;
  ``WILD_SOURCE`` is the same, harder.
- ``CELLS``: a crowd of nearly transparent grey cells with a thin rim on a noisy, unevenly lit field, as phase-contrast
  microscopy shows them; unlike the source in colour, texture, contrast and crowding.
- ``TISSUE``: swellings of the colour of the red, wet, folded wall they grow on, as an endoscope sees them.
- ``THERMAL``: small warm bodies over cold ground, in grey and dark, as a drone's thermal camera sees them at night.
- ``FLAKES``: thin flat crystals, each of one tint, on a smooth chip, as a light microscope shows them.

:func:`shifted` gives the same videos of a domain in another light, noisier, blurred or with other textures, and
:func:`mixed` puts one domain's objects before another's background: what a study of forgetting asks about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from scipy.ndimage import gaussian_filter

from ..records import RLE, ArrayFrame, DataSet, ObjectTrack, Segmentation, VideoRecord
from ..writers import write_coco

ANGLES = 180  # samples of an outline's radius over the full turn
TEXTURE = 64  # side of a texture tile in pixels; tiles repeat

Look = Callable[[np.ndarray], np.ndarray]  # float RGB (H, W, 3) in 0–1 → the same, before the camera's noise
ShiftKind = Literal["grey", "dark", "bright", "noise", "blur", "textures"]
SHIFTS: tuple[ShiftKind, ...] = get_args(ShiftKind)
SAME_DOMAIN: tuple[ShiftKind, ...] = ("dark", "bright", "noise", "blur")  # in which a domain is still itself


@dataclass(frozen=True)
class Domain:
    """What a synthetic world looks like. Ranges are (low, high); lengths are shares of the image side.

    ``look`` draws how the camera renders a whole video, None as it is. ``drawn_as`` names the domain whose random
    numbers are used, so that a shifted domain shows the same things moving the same way.
    """

    name: str
    objects: tuple[int, int]
    distractors: tuple[int, int]
    radius: tuple[float, float]
    speed: float
    camera: float
    noise: tuple[float, float]
    fill: Callable[[np.random.Generator], Fill]
    background: Callable[[np.random.Generator], np.ndarray]
    light: tuple[float, float]
    shapes: tuple[str, ...] = ("ellipse", "blob", "polygon", "star", "rectangle")
    occluder: float = 0.0
    twin: float = 0.0
    overlap: float = 1.0
    look: Callable[[np.random.Generator], Look] | None = None
    drawn_as: str | None = None


@dataclass(frozen=True)
class Fill:
    """How an object looks: a repeating colour tile, its opacity inside, and a rim of its own colour.

    ``tile``: float RGB (TEXTURE, TEXTURE, 3) in 0–1. ``rim``: (width as a share of the radius, opacity, RGB).
    """

    tile: np.ndarray
    opacity: float = 1.0
    rim: tuple[float, float, tuple[float, float, float]] | None = None


def texture(rng: np.random.Generator, colours: np.ndarray, kind: str | None = None) -> np.ndarray:
    """A repeating tile that blends two colours. ``colours``: (2, 3) in 0–1. Returns float (TEXTURE, TEXTURE, 3)."""
    kind = kind or rng.choice(["flat", "noise", "stripes", "checks", "dots", "cloud", "gradient"])
    y, x = np.mgrid[0:TEXTURE, 0:TEXTURE] / TEXTURE
    # whole numbers of periods per tile, so that tiles join without a seam
    fx, fy = rng.integers(-4, 5), rng.integers(1, 6)
    wave = np.sin(2 * np.pi * (fx * x + fy * y) + rng.uniform(0, 6.3))
    if kind == "flat":
        field = np.full((TEXTURE, TEXTURE), rng.uniform(0, 0.2))
    elif kind == "noise":
        field = rng.random((TEXTURE, TEXTURE))
    elif kind == "stripes":
        field = 0.5 + 0.5 * np.tanh(4 * wave)
    elif kind == "checks":
        other = np.sin(2 * np.pi * (fy * x - fx * y) + rng.uniform(0, 6.3))
        field = 0.5 + 0.5 * np.tanh(5 * wave * other)
    elif kind == "dots":
        n = rng.integers(2, 6)
        field = (np.cos(2 * np.pi * n * x) + np.cos(2 * np.pi * n * y) > rng.uniform(0.2, 1.2)).astype(float)
    elif kind == "cloud":
        field = np.sum([_smooth_noise(rng, cells, TEXTURE) / cells**0.5 for cells in (4, 8, 16)], axis=0)
        field = (field - field.min()) / (np.ptp(field) + 1e-6)
    else:
        field = 0.5 + 0.5 * np.cos(2 * np.pi * (x * rng.integers(0, 2) + y) + rng.uniform(0, 6.3))
    return colours[0] + field[..., None] * (colours[1] - colours[0])


def _smooth_noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Periodic smooth noise with ``cells`` random values per side, shape (side, side)."""
    grid = rng.random((cells, cells))
    at = np.arange(side) * cells / side
    low = at.astype(int)
    weight = at - low
    weight = weight * weight * (3 - 2 * weight)
    high = (low + 1) % cells
    rows = grid[low] * (1 - weight[:, None]) + grid[high] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, high] * weight


def outline(rng: np.random.Generator, kind: str) -> np.ndarray:
    """The radius of a star-shaped outline per angle, (ANGLES,), largest value 1."""
    angle = np.arange(ANGLES) * 2 * np.pi / ANGLES
    if kind == "ellipse":
        ratio = rng.uniform(0.45, 1.0)
        radius = ratio / np.sqrt((ratio * np.cos(angle)) ** 2 + np.sin(angle) ** 2)
    elif kind == "blob":
        orders = np.arange(2, 7)
        size = rng.normal(0, 0.35, len(orders)) / orders
        radius = 1 + (size[:, None] * np.cos(orders[:, None] * angle + rng.uniform(0, 6.3, (len(orders), 1)))).sum(0)
        radius = np.clip(radius, 0.25, None)
    elif kind == "rectangle":
        half_height = rng.uniform(0.35, 1.0)
        radius = np.minimum(
            1 / np.maximum(np.abs(np.cos(angle)), 1e-3), half_height / np.maximum(np.abs(np.sin(angle)), 1e-3)
        )
    elif kind == "polygon":
        corners = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 8)))
        corners = np.linspace(0, 2 * np.pi, len(corners), endpoint=False) * 0.7 + corners * 0.3
        size = rng.uniform(0.6, 1.0, len(corners))
        px, py = size * np.cos(corners), size * np.sin(corners)
        # the ray at an angle meets the edge between the two corners around it
        after = np.searchsorted(corners, angle) % len(corners)
        before = after - 1
        ex, ey = px[after] - px[before], py[after] - py[before]
        cross = np.cos(angle) * ey - np.sin(angle) * ex
        radius = (px[before] * ey - py[before] * ex) / np.where(np.abs(cross) < 1e-3, 1e-3, cross)
        radius = np.clip(radius, 0.1, 1.2)
    elif kind == "star":
        points = rng.integers(3, 7)
        radius = 1 + rng.uniform(0.15, 0.4) * np.cos(points * angle)
    else:
        raise ValueError(f"unknown outline {kind!r}")
    return radius / radius.max()


@dataclass
class _Body:
    """One drawn thing and how it moves; positions are shares of the image side, time runs from 0 to 1."""

    object_id: int | None
    radius_A: np.ndarray
    fill: Fill
    size: float
    place: np.ndarray
    velocity: np.ndarray
    sway: np.ndarray
    sway_phase: float
    angle: float
    spin: float
    growth: float
    wobble: float

    def draw(
        self, time: float, side: int, shift: np.ndarray, zoom: float
    ) -> tuple[slice, slice, np.ndarray, np.ndarray]:
        """Rows, columns, coverage (h, w) in 0–1 and colour with opacity (h, w, 4) inside that window."""
        centre = self.place + self.velocity * time + self.sway * np.sin(2 * np.pi * time + self.sway_phase)
        cx, cy = ((centre + shift - 0.5) * zoom + 0.5) * side
        size = self.size * (1 + self.growth * time) * zoom * side
        reach = int(size * 1.15) + 3
        rows = slice(min(max(int(cy) - reach, 0), side), min(max(int(cy) + reach, 0), side))
        columns = slice(min(max(int(cx) - reach, 0), side), min(max(int(cx) + reach, 0), side))
        y, x = np.mgrid[rows, columns].astype(np.float32)
        turn = self.angle + self.spin * time
        dx, dy = x + 0.5 - cx, y + 0.5 - cy
        lx, ly = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
        distance = np.sqrt(lx * lx + ly * ly)
        at = np.arctan2(ly, lx) * (ANGLES / (2 * np.pi)) % ANGLES
        low = at.astype(int) % ANGLES
        part = at - at.astype(int)
        radius_A = self.radius_A * (1 + self.wobble * np.sin(2 * np.pi * time + np.arange(ANGLES) * 4 * np.pi / ANGLES))
        edge = size * (radius_A[low] * (1 - part) + radius_A[(low + 1) % ANGLES] * part)
        inside = edge - distance
        coverage = np.clip(inside + 0.5, 0, 1)
        # the tile is stretched over the object, so that its texture turns and grows with it
        scale = TEXTURE / (2 * max(size, 1.0)) * max(1.0, self.size * 4)
        tx, ty = (lx * scale).astype(int) % TEXTURE, (ly * scale).astype(int) % TEXTURE
        colour = np.empty((*coverage.shape, 4), np.float32)
        colour[..., :3] = self.fill.tile[ty, tx]
        colour[..., 3] = self.fill.opacity * coverage
        if self.fill.rim is not None:
            width, opacity, rgb = self.fill.rim
            width = max(width * size, 0.8)
            on_rim = np.exp(-(((inside - width) / width) ** 2)) * opacity
            colour[..., :3] += on_rim[..., None] * (np.array(rgb, np.float32) - colour[..., :3])
            colour[..., 3] = np.maximum(colour[..., 3], on_rim)
        return rows, columns, coverage, colour


def make_video(domain: Domain, seed: int, frames: int = 8, side: int = 128) -> VideoRecord:
    """Draw one video of a domain.

    Args:
        domain: which world.
        seed: the same seed, frames and side give the same video.
        frames: number of frames; the motion spans 8 frames, whatever number is drawn.
        side: height and width in pixels.

    Returns:
        A record of ArrayFrames (uint8 RGB) with RLE masks; objects that are hidden or out of the picture on a frame
        have None there.
    """
    rng = np.random.default_rng((seed, *(domain.drawn_as or domain.name).encode()))
    look = domain.look(np.random.default_rng((seed, *domain.name.encode()))) if domain.look else None
    bodies = _make_bodies(domain, rng)
    background = domain.background(rng)
    pan = rng.normal(0, domain.camera, 2)
    zoom_rate = rng.normal(0, domain.camera)
    noise = rng.uniform(*domain.noise)
    light = rng.uniform(*domain.light)
    light_angle = rng.uniform(0, 2 * np.pi)
    flicker = rng.normal(0, 0.05)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    shade = 1 + light * (np.cos(light_angle) * x + np.sin(light_angle) * y)

    sources: list[ArrayFrame] = []
    masks: dict[int, list[Segmentation | None]] = {b.object_id: [] for b in bodies if b.object_id is not None}
    for t in range(frames):
        time = t / 8
        shift, zoom = pan * time, 1 + zoom_rate * time
        image = _sample_background(background, shift, zoom, side)
        owner = np.zeros((side, side), np.int16)
        for body in bodies:
            rows, columns, coverage, colour = body.draw(time, side, shift, zoom)
            alpha = colour[..., 3:]
            window = image[rows, columns]
            window += alpha * (colour[..., :3] - window)
            owner[rows, columns][coverage > 0.5] = body.object_id or 0
        image *= (shade * (1 + flicker * time))[..., None]
        if look is not None:
            image = look(image)
        image += rng.normal(0, noise, image.shape)
        pixels = (np.clip(image, 0, 1) * 255).astype(np.uint8)
        sources.append(ArrayFrame(pixels, f"{domain.name} {seed} frame {t}", f"{t:05d}"))
        for object_id, track in masks.items():
            mask = owner == object_id
            track.append(RLE.encode(mask) if mask.sum() > 4 else None)
    # an object that starts hidden cannot be prompted on the first frame, nor can a still image hold it
    objects = [
        ObjectTrack(i, track, domain.name.removesuffix("s")) for i, track in masks.items() if track[0] is not None
    ]
    return VideoRecord(f"{domain.name}_{seed:05d}", side, side, list(sources), objects)


def make_videos(domain: Domain, count: int, first_seed: int, frames: int = 8, side: int = 128) -> DataSet:
    """``count`` videos with consecutive seeds; every one has at least one object."""
    videos: list[VideoRecord] = []
    seed = first_seed
    while len(videos) < count:
        video = make_video(domain, seed, frames, side)
        if video.objects:
            videos.append(video)
        seed += 1
    return DataSet(domain.name, videos)


def _make_bodies(domain: Domain, rng: np.random.Generator) -> list[_Body]:
    count = rng.integers(domain.objects[0], domain.objects[1] + 1)
    extra = rng.integers(domain.distractors[0], domain.distractors[1] + 1)
    bodies: list[_Body] = []
    for _body in range(count + extra):
        size = np.exp(rng.uniform(*np.log(domain.radius)))
        place = rng.uniform(0.1, 0.9, 2)
        for _ in range(30):  # a free place, if there is one
            if all(np.linalg.norm(place - b.place) > (1 - domain.overlap) * (size + b.size) for b in bodies):
                break
            place = rng.uniform(0.05, 0.95, 2)
        body = _Body(
            object_id=None,
            radius_A=outline(rng, rng.choice(domain.shapes)),
            fill=domain.fill(rng),
            size=size,
            place=place,
            velocity=rng.normal(0, domain.speed, 2),
            sway=rng.normal(0, domain.speed * 0.3, 2),
            sway_phase=rng.uniform(0, 6.3),
            angle=rng.uniform(0, 6.3),
            spin=rng.normal(0, domain.speed * 3),
            growth=np.clip(rng.normal(0, domain.speed * 0.6), -0.5, 0.8),
            wobble=abs(rng.normal(0, 0.06)),
        )
        if bodies and rng.random() < domain.twin:  # a look-alike of an earlier thing
            body.fill, body.radius_A = bodies[-1].fill, bodies[-1].radius_A
        bodies.append(body)
    for index, chosen in enumerate(rng.permutation(len(bodies))[:count]):
        bodies[chosen].object_id = index + 1
    if rng.random() < domain.occluder and bodies:  # something crosses in front of an object
        bar = _Body(
            None, outline(rng, rng.choice(["rectangle", "blob"])), domain.fill(rng), rng.uniform(0.08, 0.2),
            bodies[0].place + rng.normal(0, 0.3, 2), np.zeros(2), np.zeros(2), 0.0, rng.uniform(0, 6.3), 0.0, 0.0, 0.0,
        )  # fmt: skip
        bar.velocity = (bodies[0].place - bar.place) * rng.uniform(1.2, 2.2)
        bodies.append(bar)
    return bodies


def _sample_background(background: np.ndarray, shift: np.ndarray, zoom: float, side: int) -> np.ndarray:
    """The part of a square background (n, n, 3) that a camera shifted and zoomed sees; edges are mirrored."""
    n = background.shape[0]
    period = 2 * (n - 1)

    def index(offset: float) -> np.ndarray:
        at = (((np.arange(side) + 0.5) / side - 0.5) / zoom + 0.5 - offset) * n
        folded = at.astype(int) % period
        return np.where(folded < n, folded, period - folded)

    return background[index(shift[1])[:, None], index(shift[0])].astype(np.float32)


def _two_colours(rng: np.random.Generator) -> np.ndarray:
    first = rng.random(3)
    if rng.random() < 0.5:  # two tones of one colour, else any two
        return np.clip(np.stack([first, first + rng.normal(0, 0.2, 3)]), 0, 1)
    return np.stack([first, rng.random(3)])


def _source_fill(rng: np.random.Generator) -> Fill:
    rim = (rng.uniform(0.03, 0.08), 0.8, tuple(rng.random(3))) if rng.random() < 0.15 else None
    return Fill(texture(rng, _two_colours(rng)), 1.0, rim)


def _source_background(rng: np.random.Generator) -> np.ndarray:
    side = 160
    tile = texture(
        rng, _two_colours(rng), rng.choice(["cloud", "cloud", "noise", "stripes", "checks", "flat", "gradient"])
    )
    repeats = rng.uniform(0.4, 2.0)
    at = (np.arange(side) * repeats * TEXTURE / side).astype(int) % TEXTURE
    field = _smooth_noise(rng, int(rng.integers(2, 9)), side)[..., None]
    return tile[at[:, None], at] * 0.7 + 0.3 * (field * rng.random(3) + (1 - field) * rng.random(3))


def _cell_fill(rng: np.random.Generator) -> Fill:
    grey = rng.uniform(0.4, 0.6)
    tile = texture(rng, np.array([[grey] * 3, [grey + rng.uniform(-0.15, 0.15)] * 3]), "cloud")
    rim_grey = rng.uniform(0.85, 1.0) if rng.random() < 0.6 else rng.uniform(0.0, 0.1)
    return Fill(tile, rng.uniform(0.2, 0.4), (rng.uniform(0.08, 0.14), rng.uniform(0.8, 1.0), (rim_grey,) * 3))


def _cell_background(rng: np.random.Generator) -> np.ndarray:
    side = 320
    field = 0.6 * _smooth_noise(rng, 4, side) + 0.25 * _smooth_noise(rng, 20, side) + 0.15 * rng.random((side, side))
    return np.repeat((0.38 + 0.2 * field)[..., None], 3, axis=2)


def _tissue_fill(rng: np.random.Generator) -> Fill:
    pink = np.array([rng.uniform(0.7, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.28, 0.42)])
    tile = texture(rng, np.stack([pink, pink * rng.uniform(0.7, 0.85)]), "cloud")
    tile = np.maximum(tile, _highlights(rng, TEXTURE, count=3, size=(0.03, 0.07)))
    return Fill(tile, rng.uniform(0.6, 0.9), (rng.uniform(0.1, 0.2), rng.uniform(0.3, 0.6), tuple(pink * 0.55)))


def _tissue_background(rng: np.random.Generator) -> np.ndarray:
    side = 256
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    # folds: dark rings around the way ahead, bent by a smooth field
    bend = _smooth_noise(rng, 4, side)
    depth = np.hypot(x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3)) + 0.25 * bend
    folds = 0.5 + 0.5 * np.cos(2 * np.pi * (depth * rng.uniform(2, 4) + rng.random()))
    wall = np.array([rng.uniform(0.6, 0.8), rng.uniform(0.2, 0.33), rng.uniform(0.18, 0.3)])
    image = wall * (0.55 + 0.3 * folds + 0.3 * _smooth_noise(rng, 12, side))[..., None]
    vessels = np.abs(_smooth_noise(rng, 7, side) - 0.5) < 0.018
    image[vessels] *= (0.8, 0.6, 0.65)
    corners = 1 - rng.uniform(0.8, 1.6) * (x * x + y * y)
    return np.maximum(image * corners[..., None], _highlights(rng, side, count=14, size=(0.006, 0.025)))


def _highlights(rng: np.random.Generator, side: int, count: int, size: tuple[float, float]) -> np.ndarray:
    """Wet spots that mirror the lamp: soft white ellipses on black, (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side] / side
    light = np.zeros((side, side))
    for _ in range(count):
        (cx, cy), (a, b) = rng.random(2), rng.uniform(*size, 2)
        light = np.maximum(light, np.exp(-(((x - cx) / a) ** 2) - ((y - cy) / b) ** 2))
    return np.repeat(light[..., None], 3, axis=2)


def _thermal_fill(rng: np.random.Generator) -> Fill:
    warmth = rng.uniform(0.45, 0.85)
    tile = texture(rng, np.array([[warmth] * 3, [warmth * rng.uniform(0.75, 0.95)] * 3]), "cloud")
    return Fill(tile, rng.uniform(0.7, 0.95), (0.25, 0.5, (warmth * 0.6,) * 3))


def _thermal_background(rng: np.random.Generator) -> np.ndarray:
    side = 256
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    ground = 0.5 * _smooth_noise(rng, 5, side) + 0.3 * _smooth_noise(rng, 24, side)
    ground = 0.07 + 0.16 * ground
    for _ in range(rng.integers(0, 3)):  # a road keeps some of the day's warmth
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3)
        across = np.abs(x * np.cos(angle) + y * np.sin(angle) - offset)
        ground = ground + 0.08 / (1 + np.exp((across - rng.uniform(0.02, 0.05)) * 150))
    return np.repeat(gaussian_filter(ground, 2)[..., None], 3, axis=2)


def _flake_fill(rng: np.random.Generator) -> Fill:
    tint = np.array([rng.uniform(0.3, 0.7), rng.uniform(0.45, 0.75), rng.uniform(0.6, 0.95)])
    tile = texture(rng, np.stack([tint, tint + rng.uniform(-0.04, 0.04)]), "gradient")
    edge = tuple(np.clip(tint * rng.choice([0.6, 1.3]), 0, 1))
    return Fill(tile, rng.uniform(0.35, 0.9), (0.05, rng.uniform(0.3, 0.8), edge))


def _flake_background(rng: np.random.Generator) -> np.ndarray:
    side = 160
    chip = np.array([rng.uniform(0.5, 0.62), rng.uniform(0.38, 0.46), rng.uniform(0.52, 0.64)])
    dust = (rng.random((side, side)) < 0.0015).astype(float)
    specks = np.clip(gaussian_filter(dust, 0.8) * 3, 0, 0.5)
    return chip * (0.96 + 0.08 * _smooth_noise(rng, 2, side) - specks)[..., None]


SOURCE = Domain(
    name="source",
    objects=(1, 3),
    distractors=(0, 3),
    radius=(0.13, 0.3),
    speed=0.12,
    camera=0.05,
    noise=(0.0, 0.04),
    fill=_source_fill,
    background=_source_background,
    light=(0.0, 0.5),
    occluder=0.15,
    twin=0.1,
    overlap=0.4,
)

# the same world, wilder: smaller, faster, more crowded and more often hidden things
WILD_SOURCE = replace(
    SOURCE, distractors=(0, 4), radius=(0.08, 0.3), speed=0.22, camera=0.08, occluder=0.25, twin=0.15, overlap=0.6
)

CELLS = Domain(
    name="cells",
    objects=(6, 10),
    distractors=(0, 0),
    radius=(0.1, 0.18),
    speed=0.1,
    camera=0.03,
    noise=(0.005, 0.02),
    fill=_cell_fill,
    background=_cell_background,
    light=(0.1, 0.5),
    shapes=("blob", "ellipse", "blob"),
    overlap=0.3,
)

TISSUE = Domain(
    name="tissue",
    objects=(1, 4),
    distractors=(0, 0),
    radius=(0.12, 0.26),
    speed=0.1,
    camera=0.08,
    noise=(0.005, 0.02),
    fill=_tissue_fill,
    background=_tissue_background,
    light=(0.2, 0.8),
    shapes=("blob", "ellipse"),
    overlap=0.3,
)

THERMAL = Domain(
    name="thermal",
    objects=(3, 7),
    distractors=(0, 0),
    radius=(0.05, 0.12),
    speed=0.12,
    camera=0.06,
    noise=(0.02, 0.04),
    fill=_thermal_fill,
    background=_thermal_background,
    light=(0.0, 0.3),
    shapes=("ellipse", "blob"),
    overlap=0.2,
)

FLAKES = Domain(
    name="flakes",
    objects=(3, 7),
    distractors=(0, 0),
    radius=(0.08, 0.2),
    speed=0.06,
    camera=0.06,
    noise=(0.005, 0.015),
    fill=_flake_fill,
    background=_flake_background,
    light=(0.0, 0.2),
    shapes=("polygon", "polygon", "rectangle"),
    overlap=0.3,
)


def shifted(domain: Domain, kind: ShiftKind) -> Domain:
    """The same videos, seen otherwise; how much is drawn for each video.

    Args:
        domain: any domain, shifted or not.
        kind: ``grey`` without colour; ``dark`` and ``bright`` exposed otherwise; ``noise`` from a poor sensor; ``blur``
            out of focus; ``textures`` with rings, bricks or weave, which no domain has by itself, in the things' own
            colours.
    """
    changes: dict[str, Any] = {"name": f"{domain.name}_{kind}", "drawn_as": domain.drawn_as or domain.name}
    if kind == "noise":
        changes["noise"] = (0.08, 0.15)
    elif kind == "textures":
        changes["fill"], changes["background"] = _retextured_fill(domain), _retextured_background(domain)
    elif kind in _LOOKS:
        changes["look"] = _then(domain.look, _LOOKS[kind])
    else:
        raise ValueError(f"unknown shift {kind!r}, not one of {', '.join(SHIFTS)}")
    return replace(domain, **changes)


def mixed(objects: Domain, background: Domain) -> Domain:
    """The objects of one domain before the background, in the light and under the camera of another."""
    return replace(
        objects, name=f"{objects.name}_on_{background.name}", background=background.background, light=background.light,
        noise=background.noise, camera=background.camera, look=background.look,
    )  # fmt: skip


def _grey_look(rng: np.random.Generator) -> Look:
    return lambda image: np.repeat(image @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)


def _dark_look(rng: np.random.Generator) -> Look:
    gain = rng.uniform(0.3, 0.55)
    return lambda image: image * gain


def _bright_look(rng: np.random.Generator) -> Look:
    gain, veil = rng.uniform(1.2, 1.5), rng.uniform(0.05, 0.15)
    return lambda image: image * gain + veil


def _blur_look(rng: np.random.Generator) -> Look:
    share = rng.uniform(0.008, 0.016)
    return lambda image: gaussian_filter(image, (share * image.shape[0], share * image.shape[0], 0))


_LOOKS = {"grey": _grey_look, "dark": _dark_look, "bright": _bright_look, "blur": _blur_look}


def _then(
    first: Callable[[np.random.Generator], Look] | None, second: Callable[[np.random.Generator], Look]
) -> Callable[[np.random.Generator], Look]:
    """One look seen through another."""
    if first is None:
        return second

    def both(rng: np.random.Generator) -> Look:
        inner, outer = first(rng), second(rng)
        return lambda image: outer(inner(image))

    return both


def _odd_texture(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """A tile of a kind that :func:`texture` does not draw, from the darkest to the brightest colour of an image."""
    y, x = np.mgrid[0:TEXTURE, 0:TEXTURE] / TEXTURE
    n = rng.integers(2, 6)
    kind = rng.choice(["rings", "bricks", "weave"])
    if kind == "rings":
        field = 0.5 + 0.5 * np.cos(4 * np.pi * n * np.hypot(x - 0.5, y - 0.5))
    elif kind == "bricks":
        row = np.floor(y * 2 * n)
        field = ((y * 2 * n % 1 > 0.2) & ((x * n + 0.5 * (row % 2)) % 1 > 0.1)).astype(float)
    else:
        over = (np.floor(x * 2 * n) + np.floor(y * 2 * n)) % 2
        field = np.where(over, np.abs(np.sin(2 * np.pi * n * x)), np.abs(np.sin(2 * np.pi * n * y)))
    low, high = np.percentile(like.reshape(-1, 3), (5, 95), axis=0)
    return low + field[..., None] * (high - low)


def _retextured_fill(domain: Domain) -> Callable[[np.random.Generator], Fill]:
    def fill(rng: np.random.Generator) -> Fill:
        before = domain.fill(rng)
        return replace(before, tile=_odd_texture(rng.spawn(1)[0], before.tile))

    return fill


def _retextured_background(domain: Domain) -> Callable[[np.random.Generator], np.ndarray]:
    def background(rng: np.random.Generator) -> np.ndarray:
        before = domain.background(rng)
        at = np.arange(before.shape[0]) % TEXTURE
        return _odd_texture(rng.spawn(1)[0], before)[at[:, None], at]

    return background


HELD_OUT_SEED = 1_000_000  # seeds from here on are never trained on
GENERAL_SEED = 500_000  # of clips to distil on


def write_sample(folder: str | Path) -> None:
    """Write the sample data set, ``data/sample``: stills of the CELLS domain as COCO, in train, valid and test."""
    for split, count, first_seed in (("train", 64, 0), ("valid", 16, 10_000), ("test", 16, 20_000)):
        data = make_videos(CELLS, count, first_seed, frames=1, side=256)
        write_coco(Path(folder) / split, data, description="cells: synthetic, made by src/data/synthetic.py")


if __name__ == "__main__":
    write_sample("data/sample")
