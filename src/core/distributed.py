"""A run in several processes, each with a part of every batch.

A launcher such as torchrun starts the processes. Numbers and decisions are exchanged as plain objects over gloo.
Gradients are summed over NCCL on GPUs and gloo on the CPU. For a process that is alone every
function here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from .console import hide_messages
from .errors import Stopped, UserError

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another within a step; one that has ended is noticed at once."""

PATIENCE = timedelta(days=7)
"""How long processes wait for work that the first one does alone, such as checking the data."""

BUCKET_BYTES = 2**25
"""Gradients that are summed over processes at a time."""

T = TypeVar("T")


def _own(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Shard:
    """The part of some items that one of several processes takes; by default all of them.

    Attributes:
        rank, size: number of this process, and number of processes.
        collect: joins the lists of all processes in the first one; the others keep their own.
        broadcast: returns the first process's value.
    """

    rank: int = 0
    size: int = 1
    collect: Callable[[list[Any]], list[Any]] = _own
    broadcast: Callable[[Any], Any] = _own


ALL = Shard()


@dataclass(frozen=True)
class _Group:
    """All processes of a run.

    Attributes:
        rank, size: number of this process, and number of processes.
        store: what the processes share.
        patient: the group whose operations wait longer.
    """

    rank: int
    size: int
    store: Any
    patient: Any


_group: _Group | None = None


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that a launcher started, inside the block; alone where it started no other.

    Only the first process shows messages. Of several that fail the first shows its error.

    Args:
        device: a name as ``training.device`` takes it; on GPUs every process takes its own.

    Raises:
        UserError: there are fewer GPUs than processes, they do not find each other, or one of them ended before the
            others.
    """
    global _group
    if launched() == 1:
        yield
        return
    on_gpu = _take_gpu(device)
    try:
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the run's processes did not find each other: {reason}; start them by torchrun",
            "distributed.no-rendezvous",
        ) from None
    _group = _Group(rank, size, PrefixStore(f"run {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store), patient)
    if rank:
        hide_messages()
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"another of the run's {size} processes has ended, or does not answer; its error may be above; "
            "--resume auto goes on from the last checkpoint",
            "distributed.process-ended",
        ) from error
    dist.destroy_process_group()
    _group = None


def launched() -> int:
    """Return how many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _take_gpu(device: str) -> bool:
    """Choose the GPU of this process, and return whether the run is on GPUs."""
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return False
    if ":" in device:
        raise UserError(
            f"training.device: {device} is one GPU for {launched()} processes; cuda gives each its own",
            "distributed.one-gpu",
        )
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise UserError(
            f"--nproc_per_node: there are more processes on this machine than GPUs, of which it has {gpus}",
            "distributed.too-few-gpus",
        )
    torch.cuda.set_device(number)
    return True


def should_report(error: BaseException) -> bool:
    """Return whether this process shows an error: the first that fails does, and for a stop the first process."""
    if _group is None:
        return os.environ.get("RANK", "0") == "0"
    if isinstance(error, Stopped):
        return is_main_process()
    try:
        return bool(_group.store.add("failures", 1) == 1)
    except RuntimeError:  # the process that holds the store is gone
        return True


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return _group.rank if _group else 0


def world_size() -> int:
    """Return the number of processes."""
    return _group.size if _group else 1


def is_main_process() -> bool:
    """Return whether this is the process that writes files and shows messages."""
    return rank() == 0


def all_gather_object(value: T) -> list[T]:
    """Return the values of all processes, in order; they must pickle."""
    if _group is None:
        return [value]
    values: list[Any] = [None] * _group.size
    dist.all_gather_object(values, value)
    return values


def all_reduce_sum(values: Mapping[str, T]) -> dict[str, T]:
    """Return the sums over processes of named values; a process need not have all of them."""
    sums: dict[str, Any] = {}
    for own in all_gather_object(values):
        for name, value in own.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def all_reduce_(tensors: list[Tensor]) -> None:
    """Replace tensors, of the same shapes in all processes, by their sums over processes."""
    if _group is not None:
        for tensor in tensors:
            dist.all_reduce(tensor)


def broadcast_object(value: T) -> T:
    """Return the first process's value."""
    return all_gather_object(value)[0]


def barrier() -> None:
    """Wait until all processes are here."""
    if _group is not None:
        dist.barrier(_group.patient)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find what it has written."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


def assert_consistent(what: str, value: object) -> None:
    """Raise UserError in all processes unless a value is the same in all of them."""
    if any(other != value for other in all_gather_object(value)):
        raise UserError(
            f"{what} is not the same for all of the run's {world_size()} processes: all nodes must see the same files",
            "distributed.inconsistent",
        )


def shard() -> Shard:
    """Return the part of a domain's videos that this process scores."""
    return Shard(rank(), world_size(), _collect, broadcast_object)


def _collect(own: list[T]) -> list[T]:
    """Return the lists of all processes as one in the first process; in the others their own."""
    if _group is None:
        return own
    barrier()
    lists: list[Any] | None = [None] * _group.size if is_main_process() else None
    dist.gather_object(own, lists)
    return own if lists is None else [item for each in lists for item in each]


def broadcast_weights(model: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers."""
    if _group is not None:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                shared = tensor.contiguous()
                dist.broadcast(shared, 0)
                tensor.copy_(shared)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their sums over processes; a parameter that none has a gradient of stays without one.

    Gradients travel some megabytes at a time, in the same order everywhere.

    Args:
        parameters: the same ones in all processes. Which of them have a gradient may differ.
    """
    if _group is None:
        return
    used = [any(flags) for flags in zip(*all_gather_object([p.grad is not None for p in parameters]), strict=True)]
    gradients = []
    for parameter in (p for p, is_used in zip(parameters, used, strict=True) if is_used):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    while gradients:
        bucket = [gradients.pop(0)]
        size = bucket[0].nbytes
        while gradients and gradients[0].dtype == bucket[0].dtype and size + gradients[0].nbytes <= BUCKET_BYTES:
            size += gradients[0].nbytes
            bucket.append(gradients.pop(0))
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))
