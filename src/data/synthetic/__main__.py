"""Writes the sample data set: ``python -m src.data.synthetic``."""

from .sample import write_sample

if __name__ == "__main__":
    write_sample("data/sample")
