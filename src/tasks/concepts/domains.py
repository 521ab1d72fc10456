"""What an evaluation of concepts reports on: what was learned, and every way in which something can be forgotten."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...config import Config, Split
from ...core.errors import UserError
from ...data.concepts.nouns import NOUNS
from ...data.concepts.phrases import Vocabulary, as_phrase, build_vocabulary
from ...data.loading import load_data, load_split
from ...data.options import LoadOptions
from ...data.records import DataSet, VideoRecord
from ...data.synthetic.words import WORDS, make_pictures
from ...data.unlabelled import open_unlabelled
from ...evaluation.concepts.records import ConceptTruth
from ...evaluation.concepts.results import AGREEMENT
from ...models.spec import model_spec
from .data import count_categories, truths_of, vocabularies
from .evaluation import AskedImages

logger = logging.getLogger(__name__)

FALSE_ALARMS = ("IL_FPR",)
MODIFIERS = ("pmF1", "IL_MCC", "IL_FPR")

HELD_OUT_PICTURES = 10**6
"""Seed of the first held-out picture of the bundled base's own world; pre-training draws from lower ones."""

FOREIGN_PHRASES = 24
"""Foreign phrases of one kind that are asked of a picture, at most."""

NOUNS_BESIDE_ONE = 3
"""Nouns that are asked beside the phrase of a domain that has only one."""

WRONG_MODIFIERS = 4
"""Wrong modifiers of a phrase that a picture shows, at most."""

ABSENT_PHRASES = 6
"""Absent phrases that a picture of the bundled base's own world is asked for."""


def evaluation_domains(config: Config, split: Split) -> list[AskedImages]:
    """Return a split of the domains that the run learns, then :func:`other_domains`.

    Phrases of the training split are asked for, too.

    Raises:
        UserError: data are missing or damaged, or have no categories.
    """
    options = LoadOptions.from_config(config)
    sets = [load_split(each, split, options) for each in config.dataset.domains]
    words = vocabularies(config, [[*_training(config, i), data] for i, data in enumerate(sets)])
    learned = [
        ask_all(each.name, data, own, config.evaluation.max_images)
        for each, data, own in zip(config.dataset.domains, sets, words, strict=True)
    ]
    return [*learned, *other_domains(config, learned)]


def other_domains(config: Config, learned: Sequence[AskedImages]) -> list[AskedImages]:
    """Return every way in which something can be forgotten.

    They are: a bundled base's own pictures, ``evaluation.domains`` with their own phrases, foreign phrases on pictures
    of the learned domains, right nouns with wrong modifiers, and agreement with the base on unlabelled pictures.

    Raises:
        UserError: data are missing or damaged, or have no categories.
    """
    kept, bank = _retention_domains(config), [as_phrase(noun) for noun in config.evaluation.concepts.nouns or NOUNS]
    other = [phrase for domain in kept for phrase in domain.vocabulary.phrases]
    foreign = [foreign_phrases(domain, bank, other) for domain in learned]
    modifiers = [found for domain in (*learned, *kept) if (found := wrong_modifiers(domain)) is not None]
    return [*kept, *foreign, *modifiers, *_agreement(config, bank)]


def ask_all(name: str, data: DataSet, vocabulary: Vocabulary, most: int | None = None) -> AskedImages:
    """Return a domain all of whose phrases are asked of every image, or of as many images.

    A single phrase may be on every image, which says nothing of false alarms: a few nouns are asked beside it.
    """
    beside = [noun for noun in NOUNS if noun not in vocabulary.phrases][:NOUNS_BESIDE_ONE]
    ask = partial(_truths, vocabulary, beside if len(vocabulary.phrases) == 1 else [])
    return AskedImages(name, replace(data, videos=data.videos[:most]), vocabulary, ask)


def _retention_domains(config: Config) -> list[AskedImages]:
    """Return a bundled base's own pictures, and ``evaluation.domains``."""
    settings, options, domains = config.evaluation, LoadOptions.from_config(config), []
    if model_spec(config.model.name).source_world == WORDS.name and settings.source_clips:
        data = make_pictures(WORDS, settings.source_clips, HELD_OUT_PICTURES)
        pairs = [(colour, shape) for colour in WORDS.colours for shape in WORDS.shapes]
        known = [f"{colour} {shape}" for colour, shape in pairs if (colour, shape) not in WORDS.held_out]
        own = build_vocabulary(known, {})
        domains.append(AskedImages(WORDS.name, data, own, partial(_some_truths, own)))
    for place in settings.domains:
        data = load_data(place, options)
        domains.append(ask_all(place.name, data, _vocabulary(config, data), settings.max_images))
    return domains


def foreign_phrases(domain: AskedImages, bank: Sequence[str], other: Sequence[str]) -> AskedImages:
    """Return a domain's images with phrases that are not its own, all of which are taken to be absent.

    They are from a bank of nouns, and from other domains, at most 24 of each.
    """
    own = domain.vocabulary.phrases
    lists = ([phrase for phrase in dict.fromkeys(phrases) if phrase not in own] for phrases in (other, bank))
    ask = partial(_absent, list(dict.fromkeys(phrase for phrases in lists for phrase in _spread(phrases))))
    return replace(domain, name=f"{domain.name}, foreign phrases", ask=ask, shown=FALSE_ALARMS)


def wrong_modifiers(domain: AskedImages) -> AskedImages | None:
    """Return a domain's images with what they show, and its nouns with other modifiers, such as blue for red stars.

    Phrases of one noun end in the same word. None where no noun has several modifiers.
    """
    vocabulary = domain.vocabulary
    nouns: dict[str, list[str]] = {}
    for phrase in vocabulary.phrases:
        nouns.setdefault(phrase.split()[-1].lower(), []).append(phrase)
    others = {p: [q for q in of if q != p] for of in nouns.values() for p in of if len(of) > 1 and len(p.split()) > 1}
    if not others:
        return None
    ask = partial(_with_wrong_modifiers, vocabulary, others)
    return replace(domain, name=f"{domain.name}, modifiers", ask=ask, shown=MODIFIERS)


def _truths(vocabulary: Vocabulary, beside: Sequence[str], video: VideoRecord, frame: int) -> list[ConceptTruth]:
    return [*truths_of(video, frame, vocabulary), *_absent(beside, video, frame)]


def _some_truths(vocabulary: Vocabulary, video: VideoRecord, frame: int) -> list[ConceptTruth]:
    """Return what an image shows, and a few phrases that it does not show, drawn by its name."""
    truths = truths_of(video, frame, vocabulary)
    by_phrase = {truth.phrase: truth for truth in truths}
    absent = _drawn(video, _absent_of(by_phrase, by_phrase), ABSENT_PHRASES)
    return [truth for truth in truths if truth.masks or truth.phrase in absent]


def _absent(phrases: Sequence[str], video: VideoRecord, frame: int) -> list[ConceptTruth]:
    return [ConceptTruth(video.video_id, phrase, 0, []) for phrase in phrases]


def _with_wrong_modifiers(
    vocabulary: Vocabulary, others: Mapping[str, Sequence[str]], video: VideoRecord, frame: int
) -> list[ConceptTruth]:
    truths = {truth.phrase: truth for truth in truths_of(video, frame, vocabulary) if truth.exhaustive}
    shown = [phrase for phrase, truth in truths.items() if truth.masks and phrase in others]
    wrong = [q for phrase in shown for q in _drawn(video, _absent_of(truths, others[phrase]), WRONG_MODIFIERS)]
    return [truths[phrase] for phrase in dict.fromkeys([*shown, *wrong])]


def _absent_of(truths: Mapping[str, ConceptTruth], phrases: Iterable[str]) -> list[str]:
    return [phrase for phrase in phrases if phrase in truths and not truths[phrase].masks]


def _drawn(video: VideoRecord, phrases: Sequence[str], most: int) -> list[str]:
    """Return some phrases, drawn by the image's name alone."""
    order = np.random.default_rng(list(video.video_id.encode())).permutation(len(phrases))
    return [phrases[i] for i in sorted(order[:most])]


def _spread(phrases: Sequence[str]) -> list[str]:
    """Return phrases from all over a list, as many as are asked."""
    step = max(1, -(-len(phrases) // FOREIGN_PHRASES))
    return list(phrases[::step])


def _training(config: Config, number: int) -> list[DataSet]:
    """Return the training split of a domain, whose categories are asked for, too; none where it is not here."""
    domain = config.dataset.domains[number]
    try:
        return [load_split(domain, "train", LoadOptions.from_config(config))]
    except UserError as error:
        logger.warning(f"{domain.name}: only categories of the evaluated split are asked for: {error}")
        return []


def _vocabulary(config: Config, data: DataSet) -> Vocabulary:
    """Return the phrases of a data set that the run does not learn."""
    categories = count_categories([data], data.name)
    given = config.dataset.phrases
    return build_vocabulary(categories, {name: given[name] for name in categories if name in given})


def _agreement(config: Config, bank: Sequence[str]) -> list[AskedImages]:
    folder = config.evaluation.concepts.pictures
    if folder is None:
        return []
    data = open_unlabelled(folder)
    videos = data.videos[: config.evaluation.max_images]
    ask = partial(_absent, bank)
    return [
        AskedImages(f"{data.name}, unlabelled", replace(data, videos=videos), Vocabulary({}), ask, (AGREEMENT,), True)
    ]
