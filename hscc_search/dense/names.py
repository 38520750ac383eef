"""The names of networks that torchvision and timm know, read from their source: importing the two takes seconds."""

import difflib
import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

from hscc_search.errors import ModelError, quoted

# How both libraries declare a classifier.
_DECLARED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def check_network_name(name: str) -> None:
    """Check, before anything slow is imported, that there is a network of such a name.

    A user's own ``module:function`` is not looked for, and neither is any name where a library has no source.

    Raises:
        ModelError: there is none; the message names the nearest ones.
    """
    if name == "digits_cnn" or ":" in name:
        return
    in_torchvision, in_timm = declared_names("torchvision"), declared_names("timm")
    if name in in_torchvision or name.removeprefix("timm/") in in_timm or not in_torchvision or not in_timm:
        return
    raise unknown_network(name, in_torchvision, in_timm)


def declared_names(library: str) -> list[str]:
    """The names of the classifiers that an installed library declares in its folder ``models``, sorted.

    Args:
        library: ``torchvision`` or ``timm``.
    """
    found = importlib.util.find_spec(library)
    folders = found.submodule_search_locations if found is not None else None
    modules = (module for folder in folders or () for module in Path(folder, "models").glob("*.py"))
    return sorted(name for module in modules for name in _DECLARED.findall(module.read_text(encoding="utf-8")))


def unknown_network(name: str, in_torchvision: Collection[str], in_timm: Collection[str]) -> ModelError:
    """The error for a name that neither library knows, with the nearest of the names that they do know."""
    close_names = difflib.get_close_matches(name, in_torchvision)
    for timm_name in difflib.get_close_matches(name.removeprefix("timm/"), in_timm):
        close_names.append(f"timm/{timm_name}" if timm_name in in_torchvision else timm_name)
    suggestion = f"did you mean {' or '.join(close_names)}? Else " if close_names else ""
    return ModelError(
        f"no network named {quoted(name)} in torchvision or timm: {suggestion}"
        "give digits_cnn, a classifier such as alexnet, or your own module:function"
    )
