"""Having compiled graphs of a model traced anew, and those of other models left alone.

A graph that was traced before checks neither for new hooks nor for what hooks read. Dynamo keeps its graphs with the
code of the function that it has compiled: the codes that can have reached the model are told to forget theirs. A code
serves every model of its class, so models of the same class as this one, or one of its parts, are traced anew too.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn


def forget_graphs(model: nn.Module) -> None:
    """Drop the graphs in which ``model``, a part of it or a module around it may have been traced."""
    codes = list(_codes_with_graphs())
    if not codes:
        return
    related = _related_modules(model)
    classes = {base for module in related for base in type(module).__mro__}
    methods = _methods_of_modules()
    for code in codes:
        owners = methods.get(code)
        if not classes.isdisjoint(owners) if owners else _may_reach(code, related):
            sys.modules["torch._dynamo"].eval_frame.reset_code(code)


def _codes_with_graphs() -> Iterator[CodeType]:
    dynamo: Any = sys.modules.get("torch._dynamo")
    # One that another thread is importing has compiled nothing yet, and its parts may be missing.
    if dynamo is None or getattr(dynamo.__spec__, "_initializing", False):
        return
    for reference in list(dynamo.convert_frame.input_codes.seen):
        code = reference()
        if code is not None and dynamo.eval_frame._debug_get_cache_entry_list(code):
            yield code


def _related_modules(model: nn.Module) -> set[nn.Module]:
    """The model's parts, and the modules that hold it."""
    parts = set(model.modules())
    alive = (each for each in gc.get_objects() if issubclass(type(each), nn.Module) and each not in parts)
    return parts | {each for each in alive if _holds(each, model)}


def _holds(module: nn.Module, part: nn.Module) -> bool:
    """Whether ``part`` is one of the module's parts; True where the module cannot be asked now."""
    try:
        return any(each is part for each in module.modules())
    except (AttributeError, RuntimeError):  # before nn.Module.__init__, or changed by another thread in the meantime
        return True


def _methods_of_modules() -> dict[CodeType, list[type]]:
    """The classes of modules, by the code of each of their methods."""
    found: dict[CodeType, list[type]] = {}
    classes: dict[type, None] = {nn.Module: None}
    waiting: list[type] = [nn.Module]
    while waiting:
        klass = waiting.pop()
        subclasses: list[type] = klass.__subclasses__()
        waiting += [each for each in subclasses if each not in classes]
        classes[klass] = None
    for klass in classes:
        for value in vars(klass).values():
            if isinstance(value, FunctionType):
                found.setdefault(value.__code__, []).append(klass)
    return found


def _may_reach(code: CodeType, modules: set[nn.Module]) -> bool:
    """Whether a function of this code may call one of ``modules``: unless all the modules that it holds are others."""
    functions = [each for each in gc.get_referrers(code) if isinstance(each, FunctionType)]
    held = [list(_modules_held(function)) for function in functions]
    return not held or any(not each or not modules.isdisjoint(each) for each in held)


def _modules_held(function: FunctionType) -> Iterator[nn.Module]:
    """Modules in a function's closure, its defaults, and the globals that it names."""
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    values += [*(function.__defaults__ or ()), *map(function.__globals__.get, function.__code__.co_names)]
    for value in values:
        if issubclass(type(value), nn.Module):
            yield value


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
