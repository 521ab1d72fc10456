"""A run in several processes (ranks), each with a part of every batch: who this one is, and what all must agree on.

A launcher such as torchrun starts the processes and tells each who it is. Numbers and decisions go as plain objects
over gloo; gradients go through DistributedDataParallel, over NCCL on GPUs and gloo on the CPU. A process that is alone
starts none of it: for it every function here is the identity.
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
from torch.nn.parallel import DistributedDataParallel

from .console import hide_messages
from .errors import Stopped, UserError

TIMEOUT = timedelta(minutes=10)
"""How long a process waits in a step for one that does not answer; one that has died is noticed at once."""

PATIENCE = timedelta(days=7)
"""How long processes wait for what the first one does alone, such as checking the data, and after validation."""

T = TypeVar("T")


def _own(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Shard:
    """The part of some items that one of several processes takes; without arguments all of them.

    Attributes:
        rank, size: which of how many processes this is.
        collect: makes one list of those of all processes, in the first of them; the others keep what they have.
        broadcast: gives what the first process has.
    """

    rank: int = 0
    size: int = 1
    collect: Callable[[list[Any]], list[Any]] = _own
    broadcast: Callable[[Any], Any] = _own


ALL = Shard()


@dataclass(frozen=True)
class _Group:
    """All processes of a run: which one this is, their number, what they share, and the group that waits longer."""

    rank: int
    size: int
    store: Any
    patient: Any


_group: _Group | None = None


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Inside, this process is one of those that a launcher started; alone if it started no other.

    Of all of them only the first says what it does, and the first to fail says why.

    Args:
        device: ``training.device``. On GPUs every process takes its own.

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
        store, rank, size = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the run's processes did not find each other: {reason}; start them by torchrun") from None
    _group = _Group(rank, size, dist.PrefixStore(f"run {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store), patient)
    if rank:
        hide_messages()
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"another of the run's {size} processes has ended, or does not answer; what it said stands above, if it "
            "could say anything; --resume auto goes on from the last checkpoint"
        ) from error
    dist.destroy_process_group()
    _group = None


def launched() -> int:
    """How many processes a launcher says that it has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _take_gpu(device: str) -> bool:
    """Choose the GPU of this process; returns whether the run is on GPUs."""
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return False
    if ":" in device:
        raise UserError(f"training.device: {device} is one GPU for {launched()} processes; cuda gives each its own")
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise UserError(f"--nproc_per_node: there are more processes on this machine than GPUs, of which it has {gpus}")
    torch.cuda.set_device(number)
    return True


def should_report(error: BaseException) -> bool:
    """Whether this process tells an error: the first one does to which one happens, and only rank 0 tells of a stop."""
    if _group is None:
        return os.environ.get("RANK", "0") == "0"
    if isinstance(error, Stopped):
        return is_main_process()
    try:
        return _group.store.add("failures", 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return True


def rank() -> int:
    """The number of this process, from 0 on."""
    return _group.rank if _group else 0


def world_size() -> int:
    """How many processes there are."""
    return _group.size if _group else 1


def is_main_process() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def all_gather_object(value: T) -> list[T]:
    """What each process has, in order, on all of them; it must pickle."""
    if _group is None:
        return [value]
    values: list[Any] = [None] * _group.size
    dist.all_gather_object(values, value)
    return values


def all_reduce_sum(values: Mapping[str, T]) -> dict[str, T]:
    """The sums over processes of what each has by name; it need not have all of them."""
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
    """What the first process has."""
    return all_gather_object(value)[0]


def barrier() -> None:
    """Wait until all processes are here."""
    if _group is not None:
        dist.barrier(_group.patient)


@contextmanager
def main_process_first() -> Iterator[None]:
    """What the first process does in the block the others do after it, and find what it has written."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


class _NullObject:
    """Has every method, and none of them does anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def rank_zero_only(make: Callable[[], T]) -> T:
    """What ``make`` gives, such as a log, in the first process; in the others something that does nothing."""
    null: Any = _NullObject()
    return make() if is_main_process() else null


def assert_consistent(what: str, value: object) -> None:
    """Raise UserError in all processes if a value is not the same in all of them."""
    if any(other != value for other in all_gather_object(value)):
        raise UserError(
            f"{what} is not the same for all of the run's {world_size()} processes: all nodes must see the same files"
        )


def shard() -> Shard:
    """Of a domain's videos those that this process scores."""
    return Shard(rank(), world_size(), _collect, broadcast_object)


def _collect(own: list[T]) -> list[T]:
    """The lists of all processes as one in the first; elsewhere what there is."""
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
        waits: AbstractContextManager = nullcontext() if last else self._parallel.no_sync()
        with waits:
            yield self._parallel

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a share of a loss."""
        (loss * world_size()).backward()  # over processes gradients are averaged

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
