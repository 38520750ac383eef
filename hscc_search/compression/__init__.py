"""The compressor: a network and some calibration images in, a smaller network out. Works alone, as a library.

::

    calibrate   calibration/   one pass of the dense network over calibration images: which layers can be compressed,
                               their responses, and how strongly the loss depends on each
    divide      division/      regions of each output map, and clusters of channels in each region
    ranks       ranks/         a rank for each block, by an energy or by a budget for the whole network
    fit         fitting/       the factors of one layer, fitted to what the layers compressed before it deliver
    compress    compress.py    the steps above in one call, layer after layer in execution order
    refine      refining.py    all weights at once, towards the dense network's answers; no labels

``setting.py`` holds the request to the compressor. ``form.py`` holds everything about a compressed network but its
weights, ``layers.py`` the modules that run it, ``rebuild.py`` makes one from its form, and ``plan.py`` tells what
became of each layer. ``factors.py`` and ``input_axes.py`` hold the linear algebra,
``balancing.py`` turns factors for 8-bit integers. ``baselines/`` holds the peers that
a comparison runs.

A new region strategy is a function in ``division/regions.py`` that returns a label map, and a new cluster strategy one
in ``division/clusters.py``. The rank of a cluster is chosen in ``ranks/by_energy.py`` or ``ranks/by_budget.py``.
"""
