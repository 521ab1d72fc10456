"""Torch's private names do what the program takes them for."""

from __future__ import annotations

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import scalar

from src.core.torch_compat import add_summary, end_workers, is_recomputing, without_view


def test_a_repeated_forward_knows_that_it_is_one():
    seen = []

    def forward(x):
        seen.append(is_recomputing())
        return x.sin()

    checkpoint(forward, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == [False, True]


def test_a_view_becomes_none_without_a_copy():
    x = torch.ones(4, requires_grad=True) * 2
    view = x.view(2, 2)
    assert view._is_view()
    out = without_view(view)
    assert not out._is_view()
    assert out.data_ptr() == x.data_ptr()
    assert without_view(x) is x


def test_workers_end_at_once_and_begin_anew():
    loader = DataLoader(list(range(4)), num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 4
    workers = loader._iterator._workers
    end_workers(loader)
    assert not any(worker.is_alive() for worker in workers)
    assert len(list(loader)) == 4
    end_workers(loader)
    end_workers(DataLoader([1]))


def test_a_summary_is_written(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    add_summary(writer, scalar("one", 1.0))
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("one")] == [1.0]
