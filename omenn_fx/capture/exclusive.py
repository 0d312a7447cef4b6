"""One capture at a time in a process, and nothing process-wide that it does not give back.

torch.export patches `nn.Module` and keeps its state in globals, so two captures at once destroy each other.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omenn_fx.compat import import_sympy

_LOGGERS = ("torch.fx", "torch.export", "torch._export", "torch._dynamo")
_lock = threading.RLock()


def _renew() -> None:
    """A forked process has the lock, but not the thread that may have held it."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)


@contextmanager
def exclusive() -> Iterator[None]:
    """No other thread captures until this ends; a thread may enter it again."""
    with _lock:
        import_sympy()
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """torch logs and prints pages of its internals where an export fails; CaptureError says what matters."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with exclusive():
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            with _held_stderr() as held, _ignored_warnings():
                yield
            sys.stderr.write(held.getvalue())  # what the model itself wrote
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _OneThread:
    """A stream that keeps back what one thread writes, while it is `held`; all else goes where it went before."""

    def __init__(self, stream: Any, held: io.StringIO):
        self.stream, self.held, self.thread = stream, held, threading.get_ident()
        self.open = True

    def write(self, text: str) -> Any:
        mine = self.open and threading.get_ident() == self.thread
        return (self.held if mine else self.stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stream"], name)


@contextmanager
def _held_stderr() -> Iterator[io.StringIO]:
    """What this thread writes to stderr is held back; what the others write is not."""
    before, held = sys.stderr, io.StringIO()
    stream: Any = _OneThread(before, held)
    sys.stderr = stream
    try:
        yield held
    finally:
        stream.open = False  # whoever has taken it for sys.stderr meanwhile still writes through it
        if sys.stderr is stream:
            sys.stderr = before


@contextmanager
def _ignored_warnings() -> Iterator[None]:
    """Two filters more, and only these are taken out again: `catch_warnings` would undo what other threads set."""
    filters: Any = warnings.filters
    filters[:0] = _FILTERS
    try:
        yield
    finally:
        lists: dict[int, Any] = {id(entries): entries for entries in (filters, warnings.filters)}
        for entries in lists.values():  # another thread's `catch_warnings` goes on with a copy
            entries[:] = [entry for entry in entries if not any(entry is own for own in _FILTERS)]


_FILTERS = [
    ("ignore", None, FutureWarning, re.compile("copyreg"), 0),
    ("ignore", re.compile("(?s).*assigned during export"), Warning, None, 0),  # recurrent modules do so
]
