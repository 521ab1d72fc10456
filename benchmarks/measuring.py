"""What benchmarks share: a clock, variants in turn, and the memory that a piece of work takes. Linux only."""

from __future__ import annotations

import multiprocessing
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from src.core.errors import UserError

if TYPE_CHECKING:
    from src.train.setup import Run

Result = TypeVar("Result")


def clock(threads: int, device: str = "cpu") -> Callable[[], float]:
    """The process's own time on one thread, so that what else the machine does counts little; else the wall's.

    On a GPU, the wall's once all that was asked of it is done.
    """
    if device == "cpu":
        return time.process_time if threads == 1 else time.perf_counter

    def finished() -> float:
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    return finished


def in_turn(
    variants: Mapping[str, Callable[[], object]], rounds: int, now: Callable[[], float]
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every variant in every round; a round runs each of them once, in an order of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in random.Random(number).sample([*variants], len(variants)):
            started = now()
            variants[name]()
            seconds[name].append(now() - started)
    return seconds


def ratio(these: list[float], those: list[float]) -> float:
    """The median over rounds of the ratio within one."""
    return median(a / b for a, b in zip(these, those, strict=True))


def in_own_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """What a function returns, run in a fork of this process, which must not have used a GPU nor several threads."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(work(*arguments)))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise UserError(f"{work.__name__}{arguments} did not come to its end: too little memory?") from None
    finally:
        process.join()


def peak_mb(work: Callable[[], object], device: str = "cpu") -> float:
    """MB that this process takes at most during some work beyond what it took before, or on a GPU in all.

    To be called in a process of its own: what the process has freed before would hide what it takes.
    """
    if device == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    import torch

    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**20


def steps_of_an_epoch(run: Run) -> Iterator[list[Any]]:
    """Yield the micro-batches of each step of a run's next epoch; the steps are the caller's to take."""
    run.sampler.epoch = run.state.epoch
    batches = iter(run.loader)
    while run.state.step < run.last_step and (micro_batches := run.next_micro_batches(batches)):
        yield micro_batches
        run.state.step += 1
    run.state.epoch += 1
