"""The identity of a network: its structure and the code that its forward pass reaches, as digests by name."""

import functools
import hashlib
import inspect
import linecache
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.dense.weights import tensors_digest

# Code of these is known by its name: it changes with its version alone, which may be another when a study goes on.
_PUBLISHED = {"torch", "torchvision", "timm", "numpy", "hscc_search", *sys.stdlib_module_names}
# Names of two parts of an identity; all other parts are pieces of code by their dotted names.
STRUCTURE, START = "structure", "weights at build"
# Value of a part that cannot be known, such as an object of compiled code.
UNKNOWN = "unknown"
# Attributes that every module has.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def identity(network: nn.Module) -> dict[str, str]:
    """Take the digests of a network as it was built.

    Returns:
        By name a digest, or :data:`UNKNOWN`: of the structure (all modules with their types and options), of the
        weights and buffers at build, and of each function that a forward pass reaches in code that is not torch's,
        torchvision's or timm's, with the constants that it reads.
    """
    walk = _Walk(network)
    lines = [
        f"{place} {_name_of(type(module))} {module.extra_repr()} {walk.described_module(module)}"
        for place, module in network.named_modules(remove_duplicate=False)
    ]
    tensors = {**network.state_dict(), **dict(network.named_buffers()), **walk.held}
    return {
        STRUCTURE: _digest("\n".join(lines)),
        START: tensors_digest(tensors)[:16],
        **{name: UNKNOWN if texts is None else _digest("\n".join(sorted(texts))) for name, texts in walk.parts.items()},
    }


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name the parts in which two identities differ, in order; the weights at build are not compared."""
    return sorted(name for name in (before.keys() | now.keys()) - {START} if before.get(name) != now.get(name))


class _Walk:
    """A walk through the code and the values that a network's modules hold.

    Attributes:
        parts: by dotted name the texts that describe a piece of code, None where one cannot be known.
        held: tensors that modules hold as plain attributes, by their places.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parts: dict[str, set[str] | None] = {}
        self.held: dict[str, torch.Tensor] = {}
        self._places = {id(module): place for place, module in network.named_modules()}
        # By id the objects that were visited, kept alive so that no other gets the same id, and their descriptions.
        self._seen: dict[int, tuple[Any, str]] = {}
        linecache.checkcache()  # a file may have changed since its text was read

    def described_module(self, module: nn.Module) -> str:
        """Describe the options and the code of a module, without its weights and its modules."""
        kind, own = type(module), vars(module)
        place = self._places.get(id(module), "")
        described = [self.described(hook) for key in _HOOKS for hook in own[key].values()]
        if _is_published(kind.__module__):
            # Its class is known, unless its forward was replaced.
            return " ".join([*described, *(self.described(own[name]) for name in ("forward",) if name in own)])
        self._visit_class(kind)
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                self.held[f"{place}.{name}"] = value
            elif name not in _OF_EVERY_MODULE:
                described.append(f"{name}={self.described(value)}")
        return " ".join(described)

    def described(self, value: Any) -> str:
        """Describe a value by what can be compared in another process; visit the code that it holds."""
        if callable(value) and not isinstance(value, (type, nn.Module)):
            value = inspect.unwrap(value)
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return repr(value)
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return f"tensor {tensors_digest({'': torch.as_tensor(value)})[:16]}"
        if isinstance(value, nn.Module) and id(value) in self._places:
            return f"module {self._places[id(value)]}"
        if isinstance(value, FunctionType):
            self._visit_function(value)
            return _name_of(value)
        if isinstance(value, type):
            self._visit_class(value)
            return _name_of(value)
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, f"again {_name_of(type(value))}")  # what it holds may hold it
            self._seen[id(value)] = (value, self._described_object(value))
        return self._seen[id(value)][1]

    def _described_object(self, value: Any) -> str:
        kind = type(value)
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self.described(key)}: {self.described(item)}' for key, item in value.items())}}}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.described, value))}]"
        if isinstance(value, (set, frozenset)):
            return f"{{{', '.join(sorted(map(self.described, value)))}}}"
        if isinstance(value, MethodType):
            return f"{self.described(value.__func__)} of {self.described(value.__self__)}"
        if isinstance(value, functools.partial):
            return f"partial {self.described([value.func, value.args, value.keywords])}"
        if isinstance(value, torch.jit.ScriptFunction):
            return str(value.code)
        if isinstance(value, nn.Module):  # held where torch does not see it, with weights that it does not see
            return f"{value!r} {tensors_digest(value.state_dict())[:16]} {self.described_module(value)}"
        if _is_published(kind.__module__):
            text = repr(value)
            if " at 0x" not in text:
                return text
            return f"{_name_of(kind)} {self.described(vars(value)) if hasattr(value, '__dict__') else ''}"
        self._visit_class(kind)
        if not hasattr(value, "__dict__"):
            self.parts[_name_of(kind)] = None
            return UNKNOWN
        return f"{_name_of(kind)} {self.described(vars(value))}"

    def _visit_class(self, kind: type) -> None:
        """Visit all functions and constants of a class and of its bases that are not published."""
        for base in kind.__mro__:
            if _is_published(base.__module__) or id(base) in self._seen:
                continue
            self._seen[id(base)] = (base, "")
            for name, value in vars(base).items():
                # What a module's constructor made is described by itself, and need not be the same code.
                if name == "_abc_impl" or (name == "__init__" and issubclass(base, nn.Module)):
                    continue
                functions = _functions_of(value)
                for function in functions:
                    self._visit_function(function)
                if not functions and not name.startswith("__"):
                    self._add(f"{_name_of(base)}.{name}", self.described(value))

    def _visit_function(self, function: FunctionType) -> None:
        """Add a function's text, and visit what it refers to."""
        if _is_published(function.__module__) or id(function) in self._seen:
            return
        self._seen[id(function)] = (function, "")
        if function.__name__.startswith("__") and function.__code__.co_filename == "<string>":
            return  # made by dataclass or namedtuple from attributes
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        name = _name_of(function)
        self._add(name, _text_of(function))
        self._add(name, self.described([function.__defaults__, function.__kwdefaults__, *cells]))
        for value_name, value in _read_by(function):
            self._add(name, f"{value_name}={self.described(value)}")

    def _add(self, name: str, text: str) -> None:
        texts = self.parts.setdefault(name, set())
        if texts is not None:
            texts.add(text)


def _functions_of(value: Any) -> list[FunctionType]:
    """The functions behind an entry of a class."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    found = [value.fget, value.fset] if isinstance(value, property) else [getattr(value, "func", value)]
    unwrapped = [inspect.unwrap(function) for function in found if callable(function)]
    return [function for function in unwrapped if isinstance(function, FunctionType)]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


def _read_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the global values that a function reads, also through modules that are not published."""
    names = sorted(set(_names_in(function.__code__)))
    spaces: list[Mapping[str, Any]] = [function.__globals__]
    package = function.__globals__.get("__package__") or ""
    imported = [sys.modules.get(name) or sys.modules.get(f"{package}.{name}") for name in names]
    # Modules that the function's body imports.
    spaces += [vars(module) for module in imported if module is not None and not _is_published(module.__name__)]
    for space in spaces:  # grows while it is gone through
        for name in names:
            value = space.get(name)
            if isinstance(value, ModuleType):
                if not _is_published(value.__name__) and all(vars(value) is not known for known in spaces):
                    spaces.append(vars(value))
            elif value is not None:
                yield name, value


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _text_of(function: Callable[..., Any]) -> str:
    """The source of a function without comments and empty lines, or its bytecode where there is no source."""
    try:
        lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    except (OSError, TypeError):
        return _bytecode(function.__code__)
    try:
        rest = iter([*(f"{line}\n" for line in lines), ""])
        for token in list(tokenize.generate_tokens(lambda: next(rest))):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, SyntaxError, StopIteration):  # the text of a lambda may be a part of an expression
        pass
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"


def _is_published(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in _PUBLISHED


def _name_of(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', None) or ''}.{name}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
