"""Division of a layer: its output map into regions, and the channels of each region into clusters.

In the order of use:

- ``regions``: the strategies that divide an output map, and the rectangles that a label map is run as.
- ``clusters``: the strategies that group output channels.
- ``partition``: both for one layer, with the spectrum of each cluster in each region.
- ``cache``: partitions remembered with a calibration, since they depend on no rank.

A new region strategy takes four steps:

1. Write it in ``regions.py`` as a function of a layer's mean activation profiles, a number of regions and a seed that
   returns a label map. A strategy whose regions may have any shape labels tiles instead of positions, as ``kmeans``
   does.
2. Add it to the dictionary ``STRATEGIES`` below the strategies.
3. Add its name to the Literal ``RegionStrategy`` in :mod:`hscc_search.config.space`, so that study files may name it,
   and to the description of ``region_strategy`` below it.
4. Make the reference of the study file again: ``python -m hscc_search.config.reference``.

The tests that run over all strategies then include it; those that name strategies say what each of them must do. A
cluster strategy is added to ``clusters.py`` and ``ClusterStrategy`` in the same way.
"""
