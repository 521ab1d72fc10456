"""The world of words: what is drawn is what phrases say."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.words import NEW_WORDS, WORDS, Concept, WordPicture, ask, make_picture, make_pictures


def test_a_picture_depends_on_its_seed_alone() -> None:
    first, again, other = (make_picture(WORDS, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.image_HWC, again.image_HWC)
    assert first.things == again.things
    assert not np.array_equal(first.image_HWC, other.image_HWC)


def test_things_have_their_colour_where_they_are() -> None:
    for seed in range(12):
        picture = make_picture(WORDS, seed)
        for number, thing in enumerate(picture.things):
            shown = picture.image_HWC[picture.mask(number)].astype(float)
            wanted = np.array(WORDS.colours[str(thing.colour)], float)
            brightest = shown[np.argsort(shown.sum(1))]
            ends = (brightest[: len(shown) // 4].mean(0), brightest[-len(shown) // 4 :].mean(0))  # one is the pattern's
            assert min(np.abs(end - wanted).max() for end in ends) < 60, (seed, thing)


def test_instances_are_the_things_that_all_words_fit() -> None:
    rng = np.random.default_rng(0)
    present = 0
    for seed in range(40):
        picture = make_picture(WORDS, seed)
        concept, hits = ask(WORDS, picture, rng)
        words = concept.phrase(WORDS).split()
        looks = [(t.texture, t.colour, t.shape, "thing") for t in picture.things]
        assert hits == [n for n, names in enumerate(looks) if all(word in names for word in words)]
        present += bool(hits)
    assert 20 < present < 34


def test_pairs_that_are_held_out_are_neither_drawn_nor_asked_for_unless_wanted() -> None:
    rng = np.random.default_rng(0)
    pictures = [make_picture(WORDS, seed) for seed in range(60)]
    assert not {(t.colour, t.shape) for p in pictures for t in p.things} & WORDS.held_out
    asked = {(c.colour, c.shape) for p in pictures for c in (ask(WORDS, p, rng)[0] for _ in range(20))}
    assert not asked & WORDS.held_out
    pair = min(WORDS.held_out)
    assert any((t.colour, t.shape) == pair for t in make_picture(WORDS, 0, wanted=pair).things)


def test_some_pictures_are_empty_and_every_phrase_about_them_is_absent() -> None:
    empty = next(p for p in (make_picture(WORDS, seed) for seed in range(200)) if not p.things)
    assert ask(WORDS, empty, np.random.default_rng(0), present=True)[1] == []


def test_the_new_world_shares_no_word_with_the_old_one_but_its_nouns() -> None:
    assert set(WORDS.words()) & set(NEW_WORDS.words()) == {"thing", "object"}


def test_pictures_become_stills_whose_categories_are_words() -> None:
    data = make_pictures(NEW_WORDS, 3, first_seed=5, side=84, named_by=("texture", "shape"))
    assert len(data.videos) == 3
    for video in data.videos:
        assert len(video.frames) == 1
        for each in video.objects:
            texture, shape = str(each.category).split()
            assert texture in NEW_WORDS.textures
            assert shape in NEW_WORDS.shapes
            assert each.segmentations[0] is not None


def test_phrases_name_texture_colour_and_noun_with_synonyms_if_drawn() -> None:
    disc = Concept("red", "disc", "dotted")
    assert disc.phrase(WORDS) == "dotted red disc"
    drawn = {disc.phrase(WORDS, np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {f"{t} red {s}" for t in ("dotted", "spotted") for s in ("disc", "circle")}
    assert (
        WordPicture(np.zeros((2, 2, 3), np.uint8), np.array([[1, 0], [0, 2]], np.uint8), (disc, disc)).mask(1).sum()
        == 1
    )
