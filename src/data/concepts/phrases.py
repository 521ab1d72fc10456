"""The noun phrases of a run: what its categories are called, and what else is asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ...core.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """The phrases of a run.

    A phrase that several categories have asks for all of them.

    Attributes:
        phrases_of: category → its phrases, in the order of the categories.
        foreign: phrases for what no image of the run shows.
    """

    phrases_of: Mapping[str, tuple[str, ...]]
    foreign: tuple[str, ...] = ()

    @cached_property
    def categories_of(self) -> dict[str, frozenset[str]]:
        """Phrase → the categories that it asks for; none for foreign ones."""
        found: dict[str, set[str]] = {}
        for category, phrases in self.phrases_of.items():
            for phrase in phrases:
                found.setdefault(phrase, set()).add(category)
        return {
            **{phrase: frozenset(categories) for phrase, categories in found.items()},
            **dict.fromkeys(self.foreign, frozenset()),
        }

    @property
    def phrases(self) -> list[str]:
        """Every phrase once: those of categories, then foreign ones."""
        return list(self.categories_of)


def build_vocabulary(
    categories: Iterable[str], phrases: Mapping[str, list[str]], foreign: Iterable[str] = ()
) -> Vocabulary:
    """Return the phrases of categories: those that a config gives, else the category's own name.

    Args:
        categories: names of categories.
        phrases: ``dataset.phrases``.
        foreign: ``training.concepts.foreign``.

    Raises:
        UserError: a config names a category that is not there, a category's name is no phrase, or a foreign phrase
            is a category's.
    """
    names = list(dict.fromkeys(categories))
    unknown = [name for name in phrases if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.5) or names[:8]
        raise UserError(
            f"dataset.phrases: no object is of the category '{unknown[0]}'; the categories are such as "
            f"{', '.join(near)}",
            "concepts.unknown-category",
        )
    given = {name: tuple(map(as_phrase, phrases.get(name, [name]))) for name in names}
    empty = [name for name, of in given.items() if not all(of)]
    if empty:
        raise UserError(
            f"the category '{empty[0]}' has no name to ask for: say one in dataset.phrases", "concepts.no-phrase"
        )
    vocabulary = Vocabulary(given, tuple(dict.fromkeys(map(as_phrase, foreign))))
    own = [phrase for phrase in vocabulary.foreign if any(phrase in of for of in given.values())]
    if own:
        raise UserError(
            f"training.concepts.foreign: '{own[0]}' is a phrase of a category, which images show; leave it out",
            "concepts.foreign-category",
        )
    return vocabulary


def as_phrase(name: str) -> str:
    """Return a category's name as people say it: words with single spaces between them."""
    return " ".join(name.replace("_", " ").split())


def words_of(phrase: str) -> frozenset[str]:
    """Return the words of a phrase, in small letters."""
    return frozenset(phrase.lower().replace("-", " ").split())
