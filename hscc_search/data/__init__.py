"""Images with labels, and splits of them that do not leak.

In the order in which they come into play: ``folder`` finds images and their classes, ``decode`` reads a file,
``images`` reads them all, ``copies`` groups those that show the same thing, ``splits`` divides them into parts, no
group in two of them, and ``notices`` says what is worth knowing of all that. ``check`` reports on a folder beforehand.
"""

from hscc_search.data.check import check_folder
from hscc_search.data.images import Dataset, load_dataset
from hscc_search.data.notices import notices
from hscc_search.data.splits import Part, Parts, split

__all__ = ["Dataset", "Part", "Parts", "check_folder", "load_dataset", "notices", "split"]
