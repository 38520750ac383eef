"""Calibration: one pass of the dense network over calibration images, and what it tells of each layer.

In the order of the pass:

- ``calibrate``: the entry, and the :class:`~hscc_search.compression.calibration.calibrate.Calibration` that all
  compressors read; made once, or taken from the cache.
- ``dense_pass``: the images forwards and backwards through the network.
- ``plain_layers``: layers that compute their weight made plain, and ``agreement``: whether answers stay.
- ``batch_norm``: batch norms folded into the layers before them.
- ``eligible``: which layers can be compressed, and why the others cannot.
- ``hooks``: functions that are called whenever chosen modules run.
- ``gather``: running sums and responses of one layer, on the positions of a ``lattice``.
- ``activation``: bounds of the clipping activation behind a layer.
- ``record``: the outcome for one layer.
- ``store``: the format of a calibration in the cache.
"""
