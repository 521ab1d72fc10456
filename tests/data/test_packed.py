"""Lists that processes share."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from src.data.packed import PackedList

ITEMS = [("a", 1.5, None), {"b": [1, 2]}, [], 10**30]


def test_it_is_the_list_it_was_made_of():
    packed = PackedList(iter(ITEMS))
    assert len(packed) == 4
    assert list(packed) == ITEMS
    assert packed[-1] == ITEMS[-1]
    assert packed[1:3] == ITEMS[1:3]
    with pytest.raises(IndexError):
        packed[4]
    assert list(PackedList([])) == []


def test_its_size():
    packed = PackedList([np.zeros(1000), np.zeros(1000)])
    assert 16000 < packed.nbytes < 17000


def private_memory() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def read_all(packed: PackedList, result: multiprocessing.Queue) -> None:
    first = len(packed[0])
    before = private_memory()
    result.put((sum(map(len, packed)) - first, private_memory() - before))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux' account of memory")
def test_a_forked_process_that_reads_it_does_not_copy_it():
    packed = PackedList(bytes(1000) for _ in range(50_000))  # 48 MB
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    process = context.Process(target=read_all, args=(packed, result))
    process.start()
    length, grown = result.get(timeout=60)
    process.join(60)
    assert length == 1000 * 49_999
    assert grown < 10
