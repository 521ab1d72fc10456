"""Which packages are installed: all below src, as sam2_mope, and the data that ship. All else is in pyproject.toml."""

from setuptools import find_packages, setup

SHIPPED = ["checkpoints", "data.sample", "data.sample_words"]
DATA = ["sam2_mope.configs", *(f"sam2_mope.shipped.{name}" for name in SHIPPED)]

setup(packages=["sam2_mope", *(f"sam2_mope.{name}" for name in find_packages("src")), *DATA])
