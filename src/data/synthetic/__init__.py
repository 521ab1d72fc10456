"""Synthetic videos with exact masks.

The bundled nano model is pre-trained on them, and tests and samples use them.

A :class:`Domain` says what a world looks like; :func:`make_video` draws one video of it from a seed. Objects are
star-shaped outlines (a radius per angle), filled with a texture that moves with them and drawn back to front with soft
edges. An object's mask is what is left visible of it.

- ``SOURCE``: opaque, textured, coloured shapes over textured backgrounds, with distractors, occlusion, camera motion.
  ``WILD_SOURCE`` is the same, harder.
- ``CELLS``: a crowd of nearly transparent grey cells with a thin rim on a noisy, unevenly lit field, as phase-contrast
  microscopy shows them; unlike the source in colour, texture, contrast and crowding.
- ``TISSUE``: swellings of the colour of the red, wet, folded wall they grow on, as an endoscope sees them.
- ``THERMAL``: small warm bodies over cold ground, in grey and dark, as a drone's thermal camera sees them at night.
- ``FLAKES``: thin flat crystals, each of one tint, on a smooth chip, as a light microscope shows them.

:func:`shifted` gives the same videos of a domain in another light, noisier, blurred or with other textures.
:func:`mixed` puts one domain's objects before another's background. A study of forgetting compares them.
"""

from .render import Domain, make_video, make_videos
from .shifts import SAME_DOMAIN, SHIFTS, ShiftKind, mixed, shifted
from .worlds import CELLS, FLAKES, GENERAL_SEED, HELD_OUT_SEED, SOURCE, THERMAL, TISSUE, WILD_SOURCE

__all__ = [
    "CELLS",
    "FLAKES",
    "GENERAL_SEED",
    "HELD_OUT_SEED",
    "SAME_DOMAIN",
    "SHIFTS",
    "SOURCE",
    "THERMAL",
    "TISSUE",
    "WILD_SOURCE",
    "Domain",
    "ShiftKind",
    "make_video",
    "make_videos",
    "mixed",
    "shifted",
]
