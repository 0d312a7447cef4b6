"""Tasks in processes of their own, with a time limit each: what crashes or hangs takes nothing else with it."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """What a task sent until it ended: by itself, by the clock or by a signal."""

    name: str
    sent: dict[str, Any] = field(default_factory=dict)
    ended: str = ""  # "" where it came to its end
    seconds: float = 0.0


@dataclass
class _Running:
    outcome: Outcome
    process: Any
    connection: Connection
    started: float
    weight: int


def run(
    task: Callable[[str, Callable[[str, Any], None]], None],
    names: Sequence[str],
    workers: int,
    timeout: float,
    memory: float,
    alone: Callable[[str], bool],
) -> Iterator[Outcome]:
    """Run task(name, send) for every name, up to `workers` at once.

    A task has `timeout` seconds and `memory` GiB; one that wants to be `alone` has the share of all workers. Where the
    loop over the outcomes is left, whatever still runs is ended.
    """
    context = _context()
    queue, running = list(names), list[_Running]()
    try:
        while queue or running:
            while queue:
                weight = workers if alone(queue[0]) else 1
                if sum(r.weight for r in running) + weight > workers:
                    break
                running.append(_start(context, task, queue.pop(0), weight, weight * memory))
            wait([r.connection for r in running], timeout=1.0)
            for r in list(running):
                if _finished(r, timeout):
                    running.remove(r)
                    yield r.outcome
    finally:
        for r in running:
            r.process.kill()
            r.process.join()


def _context() -> Any:
    """Processes forked from one that has imported everything: a start costs milliseconds, not ten seconds."""
    context = mp.get_context("forkserver")
    folder = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), folder)))
    context.set_forkserver_preload(["zoo.preload"])
    return context


def _start(context: Any, task: Any, name: str, weight: int, memory: float) -> _Running:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, name, there, memory), daemon=True)
    process.start()
    there.close()
    return _Running(Outcome(name), process, here, time.monotonic(), weight)


def _work(task: Any, name: str, connection: Connection, memory: float) -> None:
    """In the process: silence, one thread, a limit of memory, and each result sent as soon as it is there."""
    import torch

    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    task(name, lambda key, value: connection.send((key, value)))


def _finished(r: _Running, timeout: float) -> bool:
    r.outcome.seconds = round(time.monotonic() - r.started, 1)
    try:
        while r.connection.poll():
            key, value = r.connection.recv()
            r.outcome.sent[key] = value
    except EOFError:
        r.process.join()
        if r.process.exitcode:
            r.outcome.ended = f"ended with exit code {r.process.exitcode}"
        return True
    if r.outcome.seconds > timeout:
        r.process.kill()
        r.process.join()
        r.outcome.ended = f"took more than {timeout:.0f} s"
        return True
    return False
