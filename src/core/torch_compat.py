"""Every private name of torch that the program uses outside the models' rooms, each with its reason.

They were seen with torch 2.5 to 2.15. ``tests/core/test_torch_compat.py`` fails where one does something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def is_recomputing() -> bool:
    """Return whether a forward runs inside a backward pass, as activation checkpointing runs it again.

    Torch tells it to C++ only: the number of the graph that is being differentiated, -1 outside.
    """
    return bool(torch._C._current_graph_task_id() != -1)


def without_view(out: Tensor) -> Tensor:
    """Return the same memory as a tensor that autograd does not know as a view of another.

    Such a view must not be changed in place, and older versions of torch make one where newer ones do not. Inside
    ``torch.compile`` the question makes no sense.
    """
    if not torch.compiler.is_compiling() and out._is_view():
        unsafe: Tensor = torch.ops.aten._unsafe_view(out, out.shape)
        return unsafe
    return out


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's persistent processes, which torch does only when the loader is forgotten.

    They ignore signals, so an interpreter that ends while something still holds the loader would wait for them.
    """
    if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()
        loader._iterator = None


def add_summary(writer: SummaryWriter, summary: Any) -> None:
    """Write a summary that ``SummaryWriter`` has no method for, such as the hyperparameters of a run."""
    untyped: Any = writer
    untyped._get_file_writer().add_summary(summary)
