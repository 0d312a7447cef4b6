"""Programs: all that was captured of one model, for inputs of several shapes, as long as it still holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram

from omenn_fx.analysis.plan import Request
from omenn_fx.capture.exclusive import exclusive
from omenn_fx.capture.inputs import check_leaves, check_rank, fitting, mismatch, other_structure
from omenn_fx.capture.model_state import ModelState
from omenn_fx.capture.torch_export import require_eval
from omenn_fx.errors import InputError, OmennError, StructureError
from omenn_fx.program import Program, make_program

log = logging.getLogger("omenn_fx")
LIMIT = 16  # each holds a graph, and constants of its own

_clock = count(1)


@dataclass
class _Kept:
    program: Program
    used: int = field(default_factory=lambda: next(_clock))


class Programs:
    """What was captured of a model, one program for each kind of inputs. Does not keep the model alive.

    Reading needs no lock: what is kept is replaced, never edited. Captures happen one at a time.
    """

    def __init__(self) -> None:
        self.current: Program | None = None  # the last one used
        self._kept: tuple[_Kept, ...] = ()
        self._state: ModelState | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Program]:
        return iter([kept.program for kept in self._kept])

    def find(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tick: bool = True
    ) -> tuple[Program, list[Any]] | None:
        """The program for inputs like these, and their leaves in its order; None where nothing fits."""
        program = self.current
        leaves = None if program is None else fitting(program.captured, args, kwargs)
        if program is not None and leaves is not None:
            return program, leaves
        for kept in self._kept:
            leaves = fitting(kept.program.captured, args, kwargs)
            if leaves is not None:
                if tick:
                    kept.used = next(_clock)
                self.current = kept.program
                return kept.program, leaves
        return None

    def require_alike(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise InputError where inputs cannot be meant: no tensors, or another rank or kind than what was captured."""
        check_leaves(pytree.tree_leaves((args, kwargs)))
        check_rank(None if self.current is None else self.current.captured, args, kwargs)

    def follow(self, model: nn.Module) -> bool:
        """Let go of what was captured of a model that has changed since, and say what changed. Whether it has.

        Raises:
            ModeError: it is in train mode now.
        """
        if self._state is None or not self._state.changes(model):
            return False
        with exclusive():  # a capture of a model that cannot be copied changes it for a while
            changes = [] if self._state is None else self._state.changes(model)
            if changes:
                require_eval(model)
                more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
                log.warning("the model has changed, so it is captured again: %s%s", "; ".join(changes[:3]), more)
                self.clear()
            return bool(changes)

    def capture(
        self, source: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request
    ) -> Program:
        """The program for inputs like these, made where there is none: once, however many threads ask for it."""
        model = source if isinstance(source, nn.Module) else None
        with exclusive():
            if model is not None:
                self.follow(model)
            found = self.find(args, kwargs)
            if found is not None:
                return found[0]
            state = self._state if self._state is not None or model is None else ModelState(model)
            program = self._made(source, args, kwargs, request)
            if state is not None:
                state.leave_out(program.captured.written)
            self._state = state
            self._keep(program)
            return program

    def _made(self, source: Any, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request) -> Program:
        last = None if self.current is None else self.current.captured
        if last is not None and not isinstance(source, nn.Module):
            raise InputError(
                f"these inputs do not fit the exported program: {mismatch(last, args, kwargs)}; it cannot be captured "
                "anew, transform the model itself"
            )
        try:
            program = make_program(source, args, kwargs, request)
        except OmennError as error:
            structure = "" if last is None else other_structure(last, args, kwargs)
            if not structure or isinstance(error, InputError):
                raise
            place = error.places[0] if error.places else None
            raise StructureError(f"{structure}. So called, {error.reason}", place, error.fix) from error
        if last is not None:
            log.warning("captured anew for new inputs: %s", mismatch(last, args, kwargs))
        return program

    def clear(self) -> None:
        """Let go of all."""
        self._kept, self.current, self._state = (), None, None

    def _keep(self, program: Program) -> None:
        kept = sorted(self._kept, key=lambda kept: kept.used)
        if len(kept) >= LIMIT:
            inputs = ", ".join(str(shape) for shape in kept[0].program.captured.shapes)
            log.warning("more than %d kinds of inputs: the program for inputs %s is dropped", LIMIT, inputs)
            del kept[0]
        self._kept = (*kept, _Kept(program))
        self.current = program
