"""Make torchvision import beside a CPU build of torch.

torchvision's wheel is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and the
import fails where torchvision registers shapes for the operators ``torchvision::nms`` and ``torchvision::qnms``.
Nothing here calls them; declaring the two first makes models, transforms and data sets work. Where torchvision
imports by itself this module does nothing.
"""

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Kept alive: torch withdraws a library's declarations when the object is garbage-collected.
_libraries: list[torch.library.Library] = []


def make_importable() -> None:
    """Declare the missing operators if ``import torchvision`` fails without them, and only then.

    It is not imported after that: code that does not need it need not wait for it.
    """
    if _libraries:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
