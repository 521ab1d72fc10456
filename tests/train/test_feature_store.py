"""Kept features come back bit for bit, or are computed again."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.train.feature_cache import DiskStore

FEATURES = [torch.arange(24.0).reshape(1, 2, 3, 4), torch.ones(1, 5, dtype=torch.bfloat16)]


@pytest.fixture
def store(tmp_path) -> DiskStore:
    store = DiskStore(tmp_path / "key")
    store.put((0, 3), FEATURES)
    return store


def test_features_come_back_bit_for_bit(store):
    found = store.get((0, 3))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, FEATURES, strict=True))
    assert store.get((0, 4)) is None


def test_every_flipped_bit_is_seen(store, capsys):
    (path,) = store.folder.iterdir()
    whole = path.read_bytes()
    for place in range(8, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        found = store.get((0, 3))
        assert found is None or all(torch.equal(a, b) for a, b in zip(found, FEATURES, strict=True))
    assert f"{path}: damaged" in capsys.readouterr().out


def test_a_file_without_a_checksum_is_computed_again(store):
    (path,) = store.folder.iterdir()
    save_file(load_file(path), path)
    assert store.get((0, 3)) is None
