"""Files of the package beside its Python modules: study files, and templates of the pages."""

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parent


def resource_folder(name: Literal["studies", "dashboards"]) -> Path:
    """Locate a folder of files that come with the package.

    Returns:
        The folder inside the package where it was built and installed, the one at the top of the repository where
        the package runs from there.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
