"""The worlds: looks of their objects and backgrounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from .render import TEXTURE, Domain, Fill, smooth_noise, texture


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
    field = smooth_noise(rng, int(rng.integers(2, 9)), side)[..., None]
    image: np.ndarray = tile[at[:, None], at] * 0.7 + 0.3 * (field * rng.random(3) + (1 - field) * rng.random(3))
    return image


def _cell_fill(rng: np.random.Generator) -> Fill:
    grey = rng.uniform(0.4, 0.6)
    tile = texture(rng, np.array([[grey] * 3, [grey + rng.uniform(-0.15, 0.15)] * 3]), "cloud")
    rim_grey = rng.uniform(0.85, 1.0) if rng.random() < 0.6 else rng.uniform(0.0, 0.1)
    return Fill(tile, rng.uniform(0.2, 0.4), (rng.uniform(0.08, 0.14), rng.uniform(0.8, 1.0), (rim_grey,) * 3))


def _cell_background(rng: np.random.Generator) -> np.ndarray:
    side = 320
    field = 0.6 * smooth_noise(rng, 4, side) + 0.25 * smooth_noise(rng, 20, side) + 0.15 * rng.random((side, side))
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
    bend = smooth_noise(rng, 4, side)
    depth = np.hypot(x - rng.uniform(-0.3, 0.3), y - rng.uniform(-0.3, 0.3)) + 0.25 * bend
    folds = 0.5 + 0.5 * np.cos(2 * np.pi * (depth * rng.uniform(2, 4) + rng.random()))
    wall = np.array([rng.uniform(0.6, 0.8), rng.uniform(0.2, 0.33), rng.uniform(0.18, 0.3)])
    image = wall * (0.55 + 0.3 * folds + 0.3 * smooth_noise(rng, 12, side))[..., None]
    vessels = np.abs(smooth_noise(rng, 7, side) - 0.5) < 0.018
    image[vessels] *= (0.8, 0.6, 0.65)
    corners = 1 - rng.uniform(0.8, 1.6) * (x * x + y * y)
    lit: np.ndarray = np.maximum(image * corners[..., None], _highlights(rng, side, count=14, size=(0.006, 0.025)))
    return lit


def _highlights(rng: np.random.Generator, side: int, count: int, size: tuple[float, float]) -> np.ndarray:
    """Draw wet spots that mirror the lamp: white ellipses on black, (side, side, 3)."""
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
    ground = 0.5 * smooth_noise(rng, 5, side) + 0.3 * smooth_noise(rng, 24, side)
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
    image: np.ndarray = chip * (0.96 + 0.08 * smooth_noise(rng, 2, side) - specks)[..., None]
    return image


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


HELD_OUT_SEED = 1_000_000  # seeds from here on are never trained on

GENERAL_SEED = 500_000  # of clips to distil on
