"""Adapter folders on the Hugging Face hub: ``user/name`` stands for a folder wherever one is read."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

logger = logging.getLogger(__name__)

FILES = ("*.safetensors", "*.json", "README.md", "NOTICE")
"""What an adapter folder consists of; nothing else is sent or fetched, and none of it can carry code."""

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_folder(path: str | Path) -> Path:
    """Return a path as it is, or for ``user/name`` the folder that the hub has by that name, fetched when first asked.

    A path that exists, or whose parent folder does, is never looked for on the hub; nor is a file's name. Fetched files
    are kept in the cache of ``huggingface_hub``, which works without a net from then on.

    Raises:
        UserError: the hub has no such repository, refuses it, or cannot be reached; or huggingface_hub is missing.
    """
    path = Path(path)
    if path.exists() or not is_hub_name(path.as_posix()) or path.parent.exists() or path.suffix in (".pt", ".yaml"):
        return path
    return _fetch(path.as_posix())


def is_hub_name(name: str) -> bool:
    """Return whether a text has the form of a repository's name, ``user/name``."""
    return _NAME.fullmatch(name) is not None


@cache  # one question to the hub for each name and process
def _fetch(name: str) -> Path:
    hub = _library(f"{name} is no folder here, and to ask the hub for it takes")
    errors = hub.errors
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        raise UserError(
            f"{name}: neither a folder here nor a repository of the hub that may be read; check the name, and for a "
            "private one log in with: hf auth login",
            "hub.not-found",
        ) from None
    except Exception as error:  # of whichever client library huggingface_hub uses
        raise UserError(
            f"{name}: no folder here, and the hub does not give it: {_first_line(error)}", "hub.unreachable"
        ) from error
    logger.info(f"{name} of the hub, revision {folder.name[:12]}: {folder}")
    return folder


def check_card(path: Path) -> None:
    """Check the head of a model card as ``huggingface_hub`` reads it, its model-index among it; the hub checks more.

    Raises:
        UserError: it is no YAML, or no model card's; or huggingface_hub is missing.
    """
    card = _library("push takes").ModelCard
    try:
        card(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: its head is not a model card's: {_first_line(error)}; write it again with sam2-mope evaluate",
            "hub.card",
        ) from None


def push_folder(folder: Path, name: str, private: bool = False) -> str:
    """Make a repository of the hub where it does not exist, put a folder's :data:`FILES` into it, and return its URL.

    The hub checks the model card's head before it takes anything.

    Args:
        folder: an adapter folder.
        name: ``user/name``.
        private: make a new repository a private one; one that exists stays as it is.

    Raises:
        UserError: the name is none, nobody is logged in, or the hub refuses or cannot be reached.
    """
    if not is_hub_name(name):
        raise UserError(f"{name}: a repository of the hub is called user/name", "hub.name")
    api = _library("push takes").HfApi(library_name="sam2-mope")
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="Upload an adapter"
        )
    except Exception as error:  # of whichever client library huggingface_hub uses
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; log in with: hf auth login" if status in (401, 403) or "token" in str(error).lower() else ""
        raise UserError(f"{name}: the hub does not take it: {_first_line(error)}{hint}", "hub.refused") from error
    return str(url)


def _library(purpose: str) -> Any:
    try:
        import_module("huggingface_hub.errors")
        return import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            f"{purpose} huggingface_hub, which is not installed: pip install sam2-mope[hub]", "hub.not-installed"
        ) from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
