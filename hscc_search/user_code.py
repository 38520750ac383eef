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
        Exception: whatever the user's code raises, or that there is no such module or function.
    """
    from hscc_search.torchvision_operators import make_importable  # imports torch, which is slow

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script does not search the working folder
    make_importable()  # before code that may import torchvision, or timm, which does
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
