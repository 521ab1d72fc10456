"""Checks videos in several processes, which damaged files may kill."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from ...core.processes import end_with_parent
from ..records import Issue, Source
from .video import CheckedVideo, check_video

_CHUNK = 16
"""Videos that a process is given at a time, at most."""


def check_in_order(source: Source, decode: bool, workers: int) -> Iterator[CheckedVideo]:
    """Yield every video in turn, checked.

    Where a process dies, the videos it may have died of are read again one by one, to name the cause.
    """
    if workers == 0:
        yield from (check_video(source, index, decode) for index in range(len(source)))
        return
    size = max(1, min(_CHUNK, len(source) // (4 * workers)))
    chunks = deque(range(start, min(start + size, len(source))) for start in range(0, len(source), size))
    workers = min(workers, max(1, len(chunks)))
    ahead = 3 * workers
    while chunks:
        yield from _check_until_a_crash(source, decode, workers, chunks, ahead)
        in_flight = [chunks.popleft() for _ in range(min(ahead, len(chunks)))]
        suspects = deque(range(index, index + 1) for chunk in in_flight for index in chunk)
        while suspects:
            yield from _check_until_a_crash(source, decode, 1, suspects, ahead=1)
            if suspects:
                yield _crash_of(source, suspects.popleft().start, decode)


def _check_until_a_crash(
    source: Source, decode: bool, workers: int, chunks: deque[range], ahead: int
) -> Iterator[CheckedVideo]:
    """Check chunk by chunk, taking from ``chunks`` what is done, until all are, or a process dies.

    At most ``ahead`` chunks are in flight, so that what was being read is among the first of those left over.
    """
    waiting = iter(tuple(chunks))
    in_flight: deque[Future[list[CheckedVideo]]] = deque()
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(source, decode)) as pool:
        try:
            while chunks:
                for chunk in islice(waiting, ahead - len(in_flight)):
                    in_flight.append(pool.submit(_check_chunk, chunk))
                done = in_flight.popleft().result()
                chunks.popleft()
                yield from done
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(cancel_futures=True)


def _crash_of(source: Source, index: int, decode: bool) -> CheckedVideo:
    """Return the report on a video whose reading kills the process."""
    parsed = list(_check_until_a_crash(source, False, 1, deque([range(index, index + 1)]), ahead=1)) if decode else []
    paths = sorted(parsed[0].paths) if parsed else []
    file = paths[0] if paths else str(source.files[0])
    problem = f"reading entry {index} (counted from 0) of {source.name} ended the process that did"
    return CheckedVideo(index, [Issue("error", file, "", problem, "fix or delete it")], set(paths))


_work: tuple[Source, bool]
"""In a process of the pool: what it reads, and whether it decodes frames."""


def _start_worker(source: Source, decode: bool) -> None:
    global _work
    _work = source, decode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    end_with_parent()  # the pool does not look whether its owner is still there


def _check_chunk(chunk: range) -> list[CheckedVideo]:
    source, decode = _work
    return [check_video(source, index, decode) for index in chunk]
