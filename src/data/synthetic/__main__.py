"""Writes the sample data sets: ``python -m src.data.synthetic``."""

from .sample import write_sample, write_words_sample

if __name__ == "__main__":
    write_sample("data/sample")
    write_words_sample("data/sample_words")
