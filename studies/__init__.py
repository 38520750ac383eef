"""Study files that come with the package: run them by name, copy them to start your own."""

from pathlib import Path


def files() -> list[Path]:
    """The study files that come with the package."""
    return sorted(Path(__file__).parent.glob("*.yaml"))
