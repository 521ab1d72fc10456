"""The same worlds under other light, sensors, textures or backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from scipy.ndimage import gaussian_filter

from .render import TEXTURE, Appearance, Domain, Fill

ShiftKind = Literal["grey", "dark", "bright", "noise", "blur", "textures"]

SHIFTS: tuple[ShiftKind, ...] = get_args(ShiftKind)

SAME_DOMAIN: tuple[ShiftKind, ...] = ("dark", "bright", "noise", "blur")  # in which a domain is still itself


def shifted(domain: Domain, kind: ShiftKind) -> Domain:
    """Return the same world, changed in one way; each video draws how much.

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
    elif kind in _APPEARANCES:
        changes["appearance"] = _then(domain.appearance, _APPEARANCES[kind])
    else:
        raise ValueError(f"unknown shift {kind!r}, not one of {', '.join(SHIFTS)}")
    return replace(domain, **changes)


def mixed(objects: Domain, background: Domain) -> Domain:
    """Return a world with one domain's objects in another's background, light and camera."""
    return replace(
        objects, name=f"{objects.name}_on_{background.name}", background=background.background, light=background.light,
        noise=background.noise, camera=background.camera, appearance=background.appearance,
    )  # fmt: skip


def _grey_appearance(rng: np.random.Generator) -> Appearance:
    return lambda image: np.repeat(image @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)


def _dark_appearance(rng: np.random.Generator) -> Appearance:
    gain = rng.uniform(0.3, 0.55)
    return lambda image: image * gain


def _bright_appearance(rng: np.random.Generator) -> Appearance:
    gain, veil = rng.uniform(1.2, 1.5), rng.uniform(0.05, 0.15)
    return lambda image: image * gain + veil


def _blur_appearance(rng: np.random.Generator) -> Appearance:
    share = rng.uniform(0.008, 0.016)
    return lambda image: gaussian_filter(image, (share * image.shape[0], share * image.shape[0], 0))


_APPEARANCES = {
    "grey": _grey_appearance,
    "dark": _dark_appearance,
    "bright": _bright_appearance,
    "blur": _blur_appearance,
}


def _then(
    first: Callable[[np.random.Generator], Appearance] | None, second: Callable[[np.random.Generator], Appearance]
) -> Callable[[np.random.Generator], Appearance]:
    """Return one appearance applied after another."""
    if first is None:
        return second

    def both(rng: np.random.Generator) -> Appearance:
        inner, outer = first(rng), second(rng)
        return lambda image: outer(inner(image))

    return both


def _odd_texture(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Draw a tile of a kind unknown to :func:`texture`, in the colours of an image."""
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
    tile: np.ndarray = low + field[..., None] * (high - low)
    return tile


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
