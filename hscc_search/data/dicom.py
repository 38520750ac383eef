"""Read DICOM files by pydicom, which comes with ``pip install hscc-search[dicom]``."""

from pathlib import Path
from typing import Any

import numpy as np

from hscc_search.config import window_bounds
from hscc_search.errors import DataError, one_line

_GREY = ("MONOCHROME1", "MONOCHROME2")


def read_dicom(path: Path, bounds: tuple[float, float] | None) -> tuple[np.ndarray, tuple[float, float], bool]:
    """Read the values of a grey image of one frame, rescaled as the file says (such as to Hounsfield units).

    Args:
        path: of the file.
        bounds: values that are shown as black and white; None takes the first window of the file.

    Returns:
        The values, shape (height, width), those that are black and white, and whether these two are swapped
        (MONOCHROME1).

    Raises:
        DataError: pydicom is missing, the file cannot be read, has several frames or colours, or has no window.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut
    except ImportError as error:
        raise DataError(f"cannot read image {path}: pip install 'hscc-search[dicom]'") from error
    try:
        file = pydicom.dcmread(path)
        kind = str(file.get("PhotometricInterpretation", "none"))
        frames = int(file.get("NumberOfFrames") or 1)
        if frames > 1:
            raise DataError(f"image {path} has {frames} frames: write each as a file of its own")
        if kind not in _GREY:
            raise DataError(f"image {path} has photometric interpretation {kind}: {' and '.join(_GREY)} are read")
        values = np.asarray(apply_modality_lut(file.pixel_array, file))
        return values, bounds or _own_bounds(path, file), kind == "MONOCHROME1"
    except DataError:
        raise
    except Exception as error:  # pydicom and its decoders raise whatever they meet
        raise DataError(
            f"cannot read image {path} ({one_line(error, with_type=True)}): replace or remove it, or install what "
            "pydicom names"
        ) from error


def _own_bounds(path: Path, file: Any) -> tuple[float, float]:
    """The values that a file shows as black and white: those of its first window, or of plain 8 bits."""
    centre, width = (_first(file.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(file.get("VOILUTFunction") or "LINEAR")
    if centre is not None and width is not None and function == "LINEAR" and width > 1:
        return window_bounds(centre, width)
    if centre is not None and width is not None and function == "LINEAR_EXACT" and width > 0:
        return centre - width / 2, centre + width / 2
    rescaled = "ModalityLUTSequence" in file or (file.get("RescaleSlope", 1), file.get("RescaleIntercept", 0)) != (1, 0)
    if centre is None and file.BitsStored == 8 and not file.PixelRepresentation and not rescaled:
        return 0.0, 255.0
    found = f"a window of width {width:g} and function {function}" if width is not None else "no window"
    raise DataError(f"image {path} has {found}: say data.window: [centre, width] or data.range: [low, high]")


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None without any."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else value[0])
