"""Functions of the user's own, which a study names as ``module:function``."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_function(name: str) -> Callable[..., Any]:
    """Import a function of the user's own; modules are searched in the working folder, too.

    Args:
        name: ``package.module:function``.

    Raises:
        ValueError: it is no such name; nothing is imported then.
        Exception: whatever the user's code raises, or that there is no such module or function.
    """
    from hscc_search.torchvision_operators import make_importable  # imports torch, which is slow

    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"{name!r} is not allowed: write package.module:function")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script does not search the working folder
    make_importable()  # before code that may import torchvision, or timm, which does
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
