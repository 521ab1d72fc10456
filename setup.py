"""Which packages are installed: all below src, as sam2_mope, and the data that ship. All else is in pyproject.toml."""

from setuptools import find_packages, setup

DATA = ["sam2_mope.configs", "sam2_mope.shipped.checkpoints", "sam2_mope.shipped.data.sample"]

setup(packages=["sam2_mope", *(f"sam2_mope.{name}" for name in find_packages("src")), *DATA])
