"""Images with labels, and splits of them that do not leak.

In the order in which they come into play: ``images`` reads the images of a folder, ``copies`` groups those that show
the same thing, ``splits`` divides them into parts, no group in two of them. ``check`` reports on a folder beforehand.
"""

from hscc_search.data.check import check_folder
from hscc_search.data.images import Dataset, load_dataset
from hscc_search.data.splits import Part, Parts, split

__all__ = ["Dataset", "Part", "Parts", "check_folder", "load_dataset", "split"]
