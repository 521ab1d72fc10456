"""Device, memory and cores of the machine, and the memory that a process takes."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .device import pick_device

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of the limit and the use of a container's memory, in versions 2 and 1 of Linux' control groups."""

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of the peak memory that the system reports."""


@dataclass(frozen=True)
class Machine:
    """What a run can use.

    Attributes:
        device: the device to train on.
        name: name of the GPU, or a word for none.
        memory: free bytes on the device; of main memory where that is the CPU.
        cores: CPU cores that this process may use.
    """

    device: torch.device
    name: str
    memory: int
    cores: int


def this_machine(device: str = "auto") -> Machine:
    """Return the machine as it is now.

    Args:
        device: a name as ``training.device`` takes it.

    Raises:
        UserError: there is no such device here.
    """
    picked = pick_device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if picked.type == "cuda":
        free, _ = torch.cuda.mem_get_info(picked)
        return Machine(picked, torch.cuda.get_device_name(picked), free, cores)
    return Machine(picked, "no GPU" if picked.type == "cpu" else picked.type, free_memory(), cores)


def free_memory() -> int:
    """Return the bytes of main memory that are free, also under a container's limit."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # not Linux
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in _CGROUP_LIMITS:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no control group of this version, or "max"
            continue
    return min(found)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has taken so far, of the GPU or of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _proc_bytes("self", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def resident_memory(process: int) -> int:
    """Return the bytes of main memory that a process takes now; 0 where that is not known."""
    return _proc_bytes(str(process), "VmRSS")


def _proc_bytes(process: str, field: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
