"""Division of a layer: its output map into regions, and the channels of each region into clusters.

In the order of use:

- ``regions``: the strategies that divide an output map, and the rectangles that a label map is run as.
- ``clusters``: the strategies that group output channels.
- ``partition``: both for one layer, with the spectrum of each cluster in each region.
- ``cache``: partitions remembered with a calibration, since they depend on no rank.

A new region strategy takes three steps:

1. Write it in ``regions.py`` as a function of a layer's mean activation profiles, a number of regions and a seed that
   returns a label map. A strategy that could give each position a region of its own labels tiles, as ``kmeans`` does.
2. Add it to ``STRATEGIES`` at the end of the strategies there.
3. Add its name to the Literal ``RegionStrategy`` in :mod:`hscc_search.config`, so that study files may name it.

The tests that run over all strategies then include it. For a cluster strategy the same holds of ``clusters.py`` and
``ClusterStrategy``.
"""
