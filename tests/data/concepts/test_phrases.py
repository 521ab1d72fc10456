"""What categories are called."""

from src.data.concepts.phrases import build_vocabulary, words_of
from tests.errors import refuses


def test_a_category_is_asked_for_by_its_name_unless_a_phrase_is_given():
    vocabulary = build_vocabulary(["alarm_clock", "Riss"], {"Riss": ["crack", "fissure"]})
    assert vocabulary.phrases_of == {"alarm_clock": ("alarm clock",), "Riss": ("crack", "fissure")}


def test_a_phrase_of_two_categories_asks_for_both():
    vocabulary = build_vocabulary(["beagle", "poodle"], {"beagle": ["dog", "beagle"], "poodle": ["dog"]})
    assert vocabulary.categories_of["dog"] == {"beagle", "poodle"}
    assert vocabulary.categories_of["beagle"] == {"beagle"}


def test_foreign_phrases_ask_for_no_category():
    vocabulary = build_vocabulary(["crack"], {}, ["car", "car"])
    assert vocabulary.phrases == ["crack", "car"]
    assert vocabulary.categories_of["car"] == frozenset()


def test_phrases_that_cannot_be_meant_are_refused():
    with refuses("concepts.unknown-category", "crak", "crack"):
        build_vocabulary(["crack"], {"crak": ["crack"]})
    with refuses("concepts.foreign-category", "crack"):
        build_vocabulary(["crack"], {}, ["crack"])
    with refuses("concepts.no-phrase", "dataset.phrases"):
        build_vocabulary(["_"], {})


def test_words_are_compared_in_small_letters():
    assert words_of("Wind-blown red Leaf") == {"wind", "blown", "red", "leaf"}
