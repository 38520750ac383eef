"""Images with labels, and splits of them that do not leak.

``images`` finds and reads them, ``copies`` finds the ones that show the same thing, ``splits`` divides them.
"""

from hscc_search.data.images import Dataset, check_folder, load_dataset
from hscc_search.data.splits import Part, Parts, split

__all__ = ["Dataset", "Part", "Parts", "check_folder", "load_dataset", "split"]
