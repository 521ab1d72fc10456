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

from src import cli
from src.errors import Stopped, UserError
from src.evaluation.forgetting import Part

TIMEOUT = timedelta(minutes=10)
"""How long a process waits in a step for one that does not answer; one that has died is noticed at once."""

PATIENCE = timedelta(days=7)
"""How long processes wait for what the first one does alone, such as checking the data, and after validation."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Team:
    """All processes of a run: which one this is, their number, what they share, and the group that waits longer."""

    rank: int
    size: int
    store: Any
    patient: Any


_team: _Team | None = None


@contextmanager
def together(device: str) -> Iterator[None]:
    """Inside, this process is one of those that a launcher started; alone if it started no other.

    Of all of them only the first says what it does, and the first to fail says why.

    Args:
        device: ``training.device``. On GPUs every process takes its own.

    Raises:
        UserError: there are fewer GPUs than processes, they do not find each other, or one of them ended before the
            others.
    """
    global _team
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
    _team = _Team(rank, size, dist.PrefixStore(f"run {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store), patient)
    cli.let_speak(_may_tell)
    if rank:
        cli.be_quiet()
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
    _team = None


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


def _may_tell(error: BaseException) -> bool:
    """Whether this process tells an error: the first one does to which one happens, and only rank 0 tells of a stop."""
    if _team is None or isinstance(error, Stopped):
        return is_first()
    try:
        return _team.store.add("failures", 1) == 1
    except RuntimeError:  # the process that holds the store is gone
        return True


def rank() -> int:
    """The number of this process, from 0 on."""
    return _team.rank if _team else 0


def size() -> int:
    """How many processes there are."""
    return _team.size if _team else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """What each process has, in order, on all of them; it must pickle."""
    if _team is None:
        return [value]
    values: list[Any] = [None] * _team.size
    dist.all_gather_object(values, value)
    return values


def total(values: Mapping[str, T]) -> dict[str, T]:
    """The sums over processes of what each has by name; it need not have all of them."""
    sums: dict[str, Any] = {}
    for own in gather(values):
        for name, value in own.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def add_up(tensors: list[Tensor]) -> None:
    """Replace tensors, of the same shapes in all processes, by their sums over processes."""
    if _team is not None:
        for tensor in tensors:
            dist.all_reduce(tensor)


def from_first(value: T) -> T:
    """What the first process has."""
    return gather(value)[0]


def meet() -> None:
    """Wait until all processes are here."""
    if _team is not None:
        dist.barrier(_team.patient)


@contextmanager
def first_alone() -> Iterator[None]:
    """What the first process does in the block the others do after it, and find what it has written."""
    if not is_first():
        meet()
    yield
    if is_first():
        meet()


class _Nobody:
    """Has every method, and none of them does anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def on_first(make: Callable[[], T]) -> T:
    """What ``make`` gives, such as a log, in the first process; in the others something that does nothing."""
    nobody: Any = _Nobody()
    return make() if is_first() else nobody


def check_alike(what: str, value: object) -> None:
    """Raise UserError in all processes if a value is not the same in all of them."""
    if any(other != value for other in gather(value)):
        raise UserError(
            f"{what} is not the same for all of the run's {size()} processes: all nodes must see the same files"
        )


def part() -> Part:
    """Of a domain's videos those that this process scores."""
    return Part(rank(), size(), _collect, from_first)


def _collect(own: list[T]) -> list[T]:
    """The lists of all processes as one in the first; elsewhere what there is."""
    if _team is None:
        return own
    meet()
    lists: list[Any] | None = [None] * _team.size if is_first() else None
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
        if size() > 1:
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
        (loss * size()).backward()  # over processes gradients are averaged

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
