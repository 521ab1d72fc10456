"""Draws videos of synthetic worlds, with exact masks.

Outlines with a moving texture are drawn back to front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..records import RLE, ArrayFrame, DataSet, ObjectTrack, Segmentation, VideoRecord

ANGLES = 180  # samples of an outline's radius over the full turn

TEXTURE = 64  # side of a texture tile in pixels; tiles repeat

Appearance = Callable[[np.ndarray], np.ndarray]  # float RGB (H, W, 3) in 0–1 → the same, before the camera's noise


@dataclass(frozen=True)
class Domain:
    """The looks of a synthetic world.

    Ranges are (low, high), lengths shares of the image side.

    ``appearance`` draws how the camera renders a whole video; None leaves it as it is. ``drawn_as`` names the domain
    whose random numbers are used, so that a shifted domain shows the same things moving the same way.
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
    appearance: Callable[[np.random.Generator], Appearance] | None = None
    drawn_as: str | None = None


@dataclass(frozen=True)
class Fill:
    """An object's looks: a repeating colour tile, its opacity, and a rim.

    ``tile``: float RGB (TEXTURE, TEXTURE, 3) in 0–1. ``rim``: (width as a share of the radius, opacity, RGB).
    """

    tile: np.ndarray
    opacity: float = 1.0
    rim: tuple[float, float, tuple[float, float, float]] | None = None


def texture(rng: np.random.Generator, colours: np.ndarray, kind: str | None = None) -> np.ndarray:
    """Draw a repeating tile that blends two colours.

    ``colours``: (2, 3) in 0–1. Returns float (TEXTURE, TEXTURE, 3).
    """
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
        field = np.sum([smooth_noise(rng, cells, TEXTURE) / cells**0.5 for cells in (4, 8, 16)], axis=0)
        field = (field - field.min()) / (np.ptp(field) + 1e-6)
    else:
        field = 0.5 + 0.5 * np.cos(2 * np.pi * (x * rng.integers(0, 2) + y) + rng.uniform(0, 6.3))
    tile: np.ndarray = colours[0] + field[..., None] * (colours[1] - colours[0])
    return tile


def smooth_noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Draw periodic smooth noise with ``cells`` random values per side, (side, side)."""
    grid = rng.random((cells, cells))
    at = np.arange(side) * cells / side
    low = at.astype(int)
    weight = at - low
    weight = weight * weight * (3 - 2 * weight)
    high = (low + 1) % cells
    rows = grid[low] * (1 - weight[:, None]) + grid[high] * weight[:, None]
    noise: np.ndarray = rows[:, low] * (1 - weight) + rows[:, high] * weight
    return noise


def outline(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Draw a star-shaped outline: its radius per angle, (ANGLES,), largest value 1."""
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
    radius_A: np.ndarray = radius / radius.max()
    return radius_A


@dataclass
class _Body:
    """One drawn thing and how it moves.

    Positions are shares of the image side, and time runs from 0 to 1.
    """

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
        """Return rows, columns, coverage (h, w) and colour with opacity (h, w, 4).

        The rows and columns are the part of the image it covers.
        """
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
    appearance = domain.appearance(np.random.default_rng((seed, *domain.name.encode()))) if domain.appearance else None
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
        if appearance is not None:
            image = appearance(image)
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
    """Draw ``count`` videos with consecutive seeds, each with at least one object."""
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
    """Return the part of a square background (n, n, 3) that a moved camera sees.

    Edges are mirrored.
    """
    n = background.shape[0]
    period = 2 * (n - 1)

    def index(offset: float) -> np.ndarray:
        at = (((np.arange(side) + 0.5) / side - 0.5) / zoom + 0.5 - offset) * n
        folded = at.astype(int) % period
        mirrored: np.ndarray = np.where(folded < n, folded, period - folded)
        return mirrored

    view: np.ndarray = background[index(shift[1])[:, None], index(shift[0])].astype(np.float32)
    return view
