"""A run in several processes, each with a part of every batch.

A launcher such as torchrun starts the processes. Numbers and decisions are exchanged as plain objects over gloo.
Gradients go through DistributedDataParallel, over NCCL on GPUs and gloo on the CPU. For a process that is alone every
function here is the identity.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .console import hide_messages
from .errors import Stopped, UserError

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another within a step; one that has ended is noticed at once."""

PATIENCE = timedelta(days=7)
"""How long processes wait for work that the first one does alone, such as checking the data."""

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


class _NullObject:
    """An object with every method, of which none does anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def rank_zero_only(make: Callable[[], T]) -> T:
    """Return what ``make`` gives, such as a log, in the first process; in the others a null object."""
    null: Any = _NullObject()
    return make() if is_main_process() else null


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


class Gradients:
    """The gradients of a step, which has several pieces, each with a backward pass of its own.

    A piece's loss is this process' share of it, which with those of the others adds up to the whole. Gradients are
    summed over pieces in each process, and over processes in the backward pass of the last piece.

    Args:
        model: some of whose parameters train. The first process' weights are copied to all.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._parallel = None
        if world_size() > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer versions have another word for broadcast_buffers
                # which parameters take part depends on the prompts that are drawn, so some may have no gradient
                self._parallel = DistributedDataParallel(
                    _Forward(model), broadcast_buffers=False, find_unused_parameters=True
                )

    @contextmanager
    def piece(self, last: bool) -> Iterator[Callable[[Callable[[], T]], T]]:
        """For the forward and the backward pass of a piece; gives what to run the forward pass by."""
        if self._parallel is None:
            yield lambda work: work()
            return
        waits: AbstractContextManager[Any] = nullcontext() if last else self._parallel.no_sync()
        with waits:
            yield self._parallel

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a share of a loss."""
        (loss * world_size()).backward()  # type: ignore[no-untyped-call]  # over processes gradients are averaged

    def nothing(self) -> Tensor:
        """The share of a process that has nothing to do: 0, with a graph."""
        return 0 * next(p for p in self.model.parameters() if p.requires_grad).sum()


class _Forward(nn.Module):
    """Lets DistributedDataParallel take any work with a model for its forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        return work()
