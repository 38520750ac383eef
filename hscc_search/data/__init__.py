"""Images with labels, and splits of them that do not leak.

In the order in which they come into play: ``folder`` finds images and their classes, or ``tables`` reads both from a
table, ``sources`` lists what a study file names, ``grouping`` says which images belong together, ``decode`` reads a
file, ``images`` reads them all (``own`` the ``items`` of a user's own data sets) into a ``store``, as a ``dataset``,
``copies`` finds those that show the same thing, and ``splits`` divides them into parts, no group in two of them
(``leaks`` counts those of a split that was given), whose ``rows`` are read when they are asked for. ``notices`` says
what is worth knowing of all that, and ``check`` reports on a folder or a table beforehand.
"""

from hscc_search.data.check import check_images
from hscc_search.data.dataset import Dataset
from hscc_search.data.images import load_dataset
from hscc_search.data.listing import PARTS
from hscc_search.data.notices import notices
from hscc_search.data.rows import Images
from hscc_search.data.splits import Part, Parts, split

__all__ = ["PARTS", "Dataset", "Images", "Part", "Parts", "check_images", "load_dataset", "notices", "split"]
