"""Files that ship with the program: the YAMLs, the bundled base, the sample data.

In a clone they are where the repository has them. An installed package carries them inside itself, so that commands
work from any folder: ``--config mope.yaml``, ``model.checkpoint: checkpoints/sam2_nano.safetensors``.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
"""The folder of the import package: ``src`` in a clone, ``sam2_mope`` where it is installed."""

CONFIGS = PACKAGE_FOLDER / "configs"
"""The folder of the YAMLs that ship."""

CLONE = PACKAGE_FOLDER.parent if (PACKAGE_FOLDER.parent / "pyproject.toml").is_file() else None
"""The repository that the program runs from; None where it is an installed package."""

_FILES = PACKAGE_FOLDER / "shipped" if CLONE is None else CLONE

_CONFIG_FOLDERS = (Path(), Path("configs"), Path("configs/sam2.1"), Path("src/configs"))

_FOLDERS = (Path("checkpoints"), Path("data/sample"), Path("data/sample_words"))


def find_file(path: str | Path) -> Path:
    """Return the path itself where it exists, else the file or folder of this name that ships with the program.

    Names of what ships are relative and begin with ``checkpoints``, ``data/sample`` or ``data/sample_words``. A path
    that neither exists nor ships is returned as it is, for the caller to report.
    """
    path = Path(path)
    if path.exists() or not any(path.is_relative_to(folder) for folder in _FOLDERS):
        return path
    shipped = _FILES / path
    return shipped if shipped.exists() else path


def find_config(path: str | Path) -> Path:
    """Return the path itself where it exists, else the YAML of this name that ships.

    Such a YAML may be called by its bare name or by its place in a clone: ``mope.yaml``, ``src/configs/mope.yaml``; or
    as SAM 2's configs are: ``configs/sam2.1/sam2.1_hiera_b+_moe.yaml``.
    """
    path = Path(path)
    if path.exists() or path.parent not in _CONFIG_FOLDERS:
        return path
    shipped = CONFIGS / path.name
    return shipped if shipped.exists() else path
