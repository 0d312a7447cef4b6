"""Contestants of one benchmark take turns in one process, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

Runs = Mapping[str, Callable[[], Any]]
_PROCESS = Path("/proc/self")


def device_name(device: str = "cpu") -> str:
    """What the times of a result file were measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # on Linux `platform` knows the architecture alone
    models = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def clock(device: str = "cpu", threads: int = 1) -> Callable[[], float]:
    """Seconds: of the processor where one thread works, of the wall where several do, of a finished GPU."""
    if device != "cpu":

        def finished() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return finished
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(
    runs: Runs,
    rounds: int,
    label: str = "",
    now: Callable[[], float] = time.process_time,
    rare: Collection[str] = (),
    every: int = 5,
) -> dict[str, dict[str, float]]:
    """Median and interquartile range in seconds of each contestant, after one turn that is not counted.

    Args:
        runs: name -> what to time.
        rounds: turns of each that are counted; the names in `rare` come in every `every`-th round only, the first
            one among them, and have no turn before it.
        label: of the progress bar.
        now: a clock, as `clock` gives.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in track(range(rounds + 1), description=label, transient=True):
        for name, run in runs.items():
            if name in rare and turn % every != 1:
                continue
            start = now()
            run()
            if turn:
                taken[name].append(now() - start)
    return {name: _spread(times) for name, times in taken.items()}


def _spread(times: list[float]) -> dict[str, float]:
    if len(times) < 2:
        return {"median": times[0], "iqr": 0.0}
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "iqr": high - low}


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int | None:
    """Bytes that a run takes at its peak, beyond what was there before it; None where the system does not tell.

    On a GPU what torch allocates; on Linux the resident memory of the process, after what is free was given back.
    """
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not (_PROCESS / "clear_refs").exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(s for s in (_PROCESS / "status").read_text().splitlines() if s.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
