"""A synthetic world with words: still pictures of coloured, textured shapes, and noun phrases about them.

The bundled nano SAM 3 is pre-trained on :data:`WORDS`. :data:`NEW_WORDS` has words and looks that it does not know.

:func:`make_picture` draws a picture from a seed: things on a smooth background, some of which share their looks, so
that a phrase has several instances and near misses. :func:`ask` draws a phrase about it, which is present or absent;
most absent ones are a present thing with one word changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from .render import smooth_noise

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Coordinates in radii → distance from the outline in radii, negative inside."""

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Coordinates in periods of the pattern → where its second colour is, bool."""

RGB = tuple[int, int, int]

LEAST_PIXELS = 60
"""Things of which less is visible are not objects of a picture."""


@dataclass(frozen=True)
class WordWorld:
    """Which things there are, and what they are called.

    Attributes:
        name: what data of it are called.
        colours, shapes, textures: what is drawn, by its first name.
        synonyms: other names of colours, shapes and textures, by the first.
        held_out: pairs (colour, shape) that are neither drawn nor asked for unless they are wanted.
        things: least and most of a picture.
        radius: (low, high), shares of the image side.
        empty: share of pictures without anything.
        twins: share of things that share looks with an earlier one.
        ground: (low, high) of the background's grey, 0–255.
    """

    name: str
    colours: Mapping[str, RGB]
    shapes: Mapping[str, Outline]
    textures: Mapping[str, Pattern]
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: frozenset[tuple[str, str]] = frozenset()
    things: tuple[int, int] = (1, 5)
    radius: tuple[float, float] = (0.1, 0.19)
    empty: float = 0.04
    twins: float = 0.45
    ground: tuple[float, float] = (70, 180)

    def words(self) -> tuple[str, ...]:
        """Return all words that phrases are made of."""
        first = (*self.colours, *self.shapes, *self.textures, *NOUNS)
        return (*first, *(name for names in self.synonyms.values() for name in names))


NOUNS = ("thing", "object")
"""Nouns that any shape answers to."""


@dataclass(frozen=True)
class Concept:
    """What a phrase asks for; None stands for any colour, shape or texture."""

    colour: str | None = None
    shape: str | None = None
    texture: str | None = None

    def matches(self, thing: Concept) -> bool:
        """Return whether a thing, whose looks are all given, is an instance."""
        return (
            self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.texture in (None, thing.texture)
        )

    def phrase(self, world: WordWorld, rng: np.random.Generator | None = None) -> str:
        """Return the words: texture, colour, noun; with ``rng`` synonyms are drawn, else first names stand."""

        def name(word: str) -> str:
            names = (word, *world.synonyms.get(word, ()))
            return names[0] if rng is None else names[int(rng.integers(len(names)))]

        noun = NOUNS[0 if rng is None else int(rng.integers(len(NOUNS)))]
        words = [name(word) for word in (self.texture, self.colour) if word is not None]
        return " ".join([*words, name(self.shape) if self.shape else noun])


@dataclass(frozen=True)
class WordPicture:
    """A picture: pixels, what is where, and what it is.

    Attributes:
        image_HWC: uint8 RGB.
        owner_HW: uint8, 0 for the background, else the thing's number from 1 on.
        things: their looks.
    """

    image_HWC: np.ndarray
    owner_HW: np.ndarray
    things: tuple[Concept, ...]

    def mask(self, number: int) -> np.ndarray:
        """Return what is visible of a thing, counted from 0: bool (H, W)."""
        mask_HW: np.ndarray = self.owner_HW == number + 1
        return mask_HW


def make_picture(world: WordWorld, seed: int, side: int = 168, wanted: tuple[str, str] | None = None) -> WordPicture:
    """Draw one picture.

    Args:
        world: which one.
        seed: the same seed, side and ``wanted`` give the same picture.
        side: height and width in pixels.
        wanted: a held-out pair (colour, shape) that the first thing is of; others may then be held-out pairs too.

    Returns:
        The picture, with the things of which at least :data:`LEAST_PIXELS` can be seen at 168 px.
    """
    rng = np.random.default_rng((seed, *world.name.encode()))
    image = _background(world, rng, side)
    owner = np.zeros((side, side), np.uint8)
    things = _draw_things(world, rng, wanted)
    placed: list[tuple[float, float, float]] = []
    drawn: list[Concept] = []
    for thing in things:
        place = _free_place(world, rng, side, placed)
        if place is not None:
            placed.append(place)
            drawn.append(thing)
            _draw(world, rng, image, owner, thing, place, len(drawn))
    light = rng.uniform(0, 0.25) * np.cos(rng.uniform(0, 2 * np.pi))
    image *= (1 + light * (np.arange(side) / side - 0.5))[:, None, None]
    image += rng.normal(0, rng.uniform(2, 8), (side, side, 1)).astype(np.float32)
    least = LEAST_PIXELS * (side / 168) ** 2
    visible = [n for n in range(1, len(drawn) + 1) if (owner == n).sum() >= least]
    numbers = np.zeros(len(drawn) + 1, np.uint8)
    numbers[visible] = np.arange(1, len(visible) + 1)
    return WordPicture(np.clip(image, 0, 255).astype(np.uint8), numbers[owner], tuple(drawn[n - 1] for n in visible))


def make_pictures(
    world: WordWorld, count: int, first_seed: int, side: int = 168, named_by: tuple[str, ...] = ("colour", "shape")
) -> DataSet:
    """Draw pictures with consecutive seeds as stills whose objects carry their words as category.

    Args:
        world: which one.
        count: their number; pictures without anything are passed over.
        first_seed: of the first.
        side: height and width in pixels.
        named_by: which of texture, colour and shape the category says.
    """
    videos: list[VideoRecord] = []
    seed = first_seed
    while len(videos) < count:
        picture = make_picture(world, seed, side)
        objects = [
            ObjectTrack(
                number + 1,
                [RLE.encode(picture.mask(number))],
                Concept(**{key: getattr(thing, key) for key in named_by}).phrase(world),
            )
            for number, thing in enumerate(picture.things)
        ]
        if objects:
            name = f"{world.name}_{seed:06d}"
            frame = ArrayFrame(picture.image_HWC, f"{world.name} {seed}", "00000")
            videos.append(VideoRecord(name, side, side, [frame], objects))
        seed += 1
    return DataSet(world.name, videos)


ASKED_BY: tuple[tuple[tuple[str, ...], float], ...] = (
    (("colour",), 0.17),
    (("shape",), 0.19),
    (("colour", "shape"), 0.28),
    (("texture", "shape"), 0.11),
    (("texture", "colour", "shape"), 0.08),
    (("texture",), 0.07),
    (("texture", "colour"), 0.07),
    ((), 0.03),
)
"""Which of its looks a phrase names, and how often."""


def ask(
    world: WordWorld, picture: WordPicture, rng: np.random.Generator, present: bool | None = None
) -> tuple[Concept, list[int]]:
    """Draw a concept to ask a picture for: it and the numbers of its instances, from 0 on.

    Args:
        world: whose words are used.
        picture: what is asked about.
        rng: what is drawn with.
        present: whether it has instances; None draws it (two of three have). A picture without things has none.

    Six of ten absent ones are a present thing with one word changed.
    """
    present = bool(rng.random() < 0.66 if present is None else present) and bool(picture.things)
    patterns, shares = zip(*ASKED_BY, strict=True)
    while True:
        keys = patterns[int(rng.choice(len(patterns), p=shares))]
        base = _any_thing(world, rng)
        if picture.things and (present or rng.random() < 0.6):
            base = picture.things[int(rng.integers(len(picture.things)))]
        looks = {key: getattr(base, key) for key in keys}
        if not present and keys:
            key = keys[int(rng.integers(len(keys)))]
            looks[key] = getattr(_any_thing(world, rng), key)
        concept = Concept(**looks)
        hits = [number for number, thing in enumerate(picture.things) if concept.matches(thing)]
        if bool(hits) == present and (concept.colour, concept.shape) not in world.held_out:
            return concept, hits


def foreign_word(rng: np.random.Generator) -> str:
    """Return a word that means nothing: consonants and vowels in turn, 3 to 6 letters."""
    letters = ("bcdfghjklmnpqrstvwxz", "aeiouy")
    first = int(rng.integers(2))
    return "".join(letters[(first + i) % 2][int(rng.integers(20 if (first + i) % 2 == 0 else 6))]
                   for i in range(int(rng.integers(3, 7))))  # fmt: skip


def _any_thing(world: WordWorld, rng: np.random.Generator) -> Concept:
    """Return looks drawn at random, no held-out pair."""
    colours, shapes, textures = list(world.colours), list(world.shapes), list(world.textures)
    while True:
        colour, shape = colours[int(rng.integers(len(colours)))], shapes[int(rng.integers(len(shapes)))]
        if (colour, shape) not in world.held_out:
            return Concept(colour, shape, textures[int(rng.integers(len(textures)))])


def _draw_things(world: WordWorld, rng: np.random.Generator, wanted: tuple[str, str] | None) -> list[Concept]:
    """Return the looks of a picture's things, in a drawn order."""
    if rng.random() < world.empty and wanted is None:
        return []
    things: list[Concept] = []
    for _ in range(int(rng.integers(world.things[0], world.things[1] + 1))):
        thing = _any_thing(world, rng)
        if things and rng.random() < world.twins:  # share all or all but one with an earlier thing
            twin = things[int(rng.integers(len(things)))]
            looks = {"colour": twin.colour, "shape": twin.shape, "texture": twin.texture}
            changed = ("colour", "shape", "texture", "")[int(rng.integers(4))]
            if changed:
                looks[changed] = getattr(thing, changed)
            thing = Concept(**looks) if (looks["colour"], looks["shape"]) not in world.held_out or wanted else thing
        if wanted is not None and not things:
            thing = Concept(*wanted, thing.texture)
        things.append(thing)
    return [things[i] for i in rng.permutation(len(things))]


def _free_place(
    world: WordWorld, rng: np.random.Generator, side: int, placed: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Return centre and radius of a thing that hardly covers others, in pixels; None where there is no room."""
    radius = side * float(np.exp(rng.uniform(*np.log(world.radius))))
    for _ in range(40):
        x, y = rng.uniform(radius * 0.9, side - radius * 0.9, 2)
        if all(np.hypot(x - a, y - b) > 0.9 * (radius + r) for a, b, r in placed):
            return float(x), float(y), radius
    return None


def _background(world: WordWorld, rng: np.random.Generator, side: int) -> np.ndarray:
    coarse = smooth_noise(rng, int(rng.integers(2, 7)), side)[..., None] - 0.5
    fine = smooth_noise(rng, 14, side)[..., None] - 0.5
    grey = rng.uniform(*world.ground) + rng.normal(0, 10, 3)
    image: np.ndarray = (grey + coarse * rng.uniform(20, 90) + fine * rng.uniform(0, 40)).astype(np.float32)
    return image


def _draw(
    world: WordWorld,
    rng: np.random.Generator,
    image: np.ndarray,
    owner: np.ndarray,
    thing: Concept,
    place: tuple[float, float, float],
    number: int,
) -> None:
    """Draw a thing into the image and the owner map."""
    assert thing.colour and thing.shape and thing.texture
    x, y, radius = place
    side, reach = image.shape[0], radius * 1.25
    rows = slice(max(0, int(y - reach)), min(side, int(y + reach) + 2))
    columns = slice(max(0, int(x - reach)), min(side, int(x + reach) + 2))
    v, u = np.mgrid[rows, columns].astype(np.float32)
    u, v = (u + 0.5 - x) / radius, (v + 0.5 - y) / radius
    turn = rng.uniform(-0.5, 0.5)
    coverage = np.clip(0.5 - world.shapes[thing.shape](*_turned(u, v, turn)) * radius, 0, 1)
    periods = rng.uniform(0.85, 1.15)
    shift = rng.uniform(0, 1, 2)
    tu, tv = _turned(u, v, rng.uniform(0, np.pi))
    first = np.array(world.colours[thing.colour], np.float32) + rng.normal(0, 9, 3)
    second = first * 0.45 if first.mean() > 70 else first + 90
    pattern = world.textures[thing.texture](tu * periods + shift[0], tv * periods + shift[1])
    colour = np.where(pattern[..., None], second, first)
    window = image[rows, columns]
    window += coverage[..., None] * (colour - window)
    owner[rows, columns][coverage > 0.5] = number


def _turned(u: np.ndarray, v: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u


def _box(u: np.ndarray, v: np.ndarray, width: float, height: float) -> np.ndarray:
    distance: np.ndarray = np.maximum(np.abs(u) - width, np.abs(v) - height)
    return distance


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    slope = 3**0.5 / 2
    distance: np.ndarray = np.maximum(np.maximum(u * slope, -u * slope) - v / 2, v) - 0.52
    return distance


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, up; straight edges between tips at 1.05 and valleys at 0.42."""
    wedge = np.pi / 5
    off_tip = np.abs((np.arctan2(u, -v) / (2 * wedge) + 0.5) % 1 - 0.5) * 2 * wedge
    radius = np.hypot(u, v)
    along, across = radius * np.cos(off_tip), radius * np.sin(off_tip)
    edge = np.array([0.42 * np.cos(wedge) - 1.05, 0.42 * np.sin(wedge)])
    distance: np.ndarray = ((along - 1.05) * edge[1] - across * edge[0]) / np.hypot(*edge)
    return distance


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95))
    return distance


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.abs(np.hypot(u, v) - 0.72) - 0.26
    return distance


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.maximum(np.hypot(u, v) - 1, 0.8 - np.hypot(u - 0.55, v))
    return distance


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), -v
    tip = (u + np.abs(v + 0.1) - 0.85) * 0.7
    lobe = np.hypot(u - 0.42, v - 0.32) - 0.5
    distance: np.ndarray = np.where(v < -0.1, tip, np.minimum(lobe, np.maximum(tip, v - 0.3)))
    return distance


def _arrow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    head = np.maximum(np.abs(v) * 0.75 + u * 0.66 - 0.6, -u - 0.05)
    distance: np.ndarray = np.minimum(head, _box(u + 0.5, v, 0.5, 0.26))
    return distance


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.maximum(np.abs(u), np.abs(u) / 2 + np.abs(v) * 3**0.5 / 2) - 0.87
    return distance


WORDS = WordWorld(
    name="words",
    colours={
        "red": (215, 40, 40),
        "orange": (240, 140, 30),
        "yellow": (240, 225, 60),
        "lime": (160, 235, 70),
        "green": (30, 140, 55),
        "cyan": (70, 215, 225),
        "blue": (45, 80, 220),
        "purple": (130, 50, 175),
        "pink": (250, 150, 205),
        "brown": (120, 70, 30),
        "white": (248, 248, 248),
        "black": (18, 18, 18),
    },
    shapes={
        "disc": lambda u, v: np.hypot(u, v) - 0.95,
        "square": lambda u, v: _box(u, v, 0.8, 0.8),
        "triangle": _triangle,
        "star": _star,
        "cross": _cross,
        "ring": _ring,
        "bar": lambda u, v: _box(u, v, 1.05, 0.33),
        "moon": _moon,
    },
    textures={
        "plain": lambda u, v: np.zeros(u.shape, bool),
        "striped": lambda u, v: (u * 1.6) % 1 < 0.47,
        "dotted": lambda u, v: np.cos(10.5 * u) + np.cos(10.5 * v) > 0.8,
        "checked": lambda u, v: np.sin(8 * u) * np.sin(8 * v) > 0,
    },
    synonyms={
        "disc": ("circle",),
        "square": ("box",),
        "cross": ("plus",),
        "ring": ("hoop",),
        "bar": ("stick",),
        "moon": ("crescent",),
        "plain": ("solid",),
        "striped": ("stripy",),
        "dotted": ("spotted",),
        "checked": ("checkered",),
    },
    held_out=frozenset(
        {
            ("red", "star"), ("blue", "ring"), ("green", "triangle"), ("yellow", "cross"),
            ("white", "disc"), ("purple", "square"), ("orange", "moon"), ("pink", "bar"),
            ("cyan", "star"), ("black", "triangle"), ("brown", "ring"), ("lime", "square"),
        }
    ),
)  # fmt: skip
"""What the nano SAM 3 is pre-trained on: 12 colours, 8 shapes, 4 textures; 12 of 96 pairs are held out."""

NEW_WORDS = WordWorld(
    name="new words",
    colours={"teal": (20, 120, 125), "maroon": (110, 15, 50), "tan": (215, 180, 135), "violet": (175, 110, 250)},
    shapes={"heart": _heart, "arrow": _arrow, "hexagon": _hexagon},
    textures={
        "smooth": lambda u, v: np.zeros(u.shape, bool),
        "wavy": lambda u, v: (v * 1.35 + 0.18 * np.sin(9 * u)) % 1 < 0.47,
        "gridded": lambda u, v: np.minimum((u * 1.6) % 1, (v * 1.6) % 1) < 0.2,
    },
    things=(1, 4),
    empty=0.0,
    ground=(110, 220),
)
"""Words and looks that the nano SAM 3 does not know."""
