"""A rank for each block of each layer, before anything is fitted.

::

    choice      the entry: choose_ranks(calibration, setting) gives a design for each layer
    by_energy   each cluster by itself: the rank that keeps its energy
    by_budget   all layers together: the ranks with the least loss within a budget

Behind these: ``energy`` (from eigenvalues to ranks), ``costs`` and ``losses`` (what a rank costs and loses), ``menu``
(all ranks that a layer may take), ``options``, ``relaxation`` and ``knapsack`` (the exact choice from all menus) and
``design`` (the form of a layer and its cost). A new way to choose ranks is a module beside ``by_energy``, which ends in
:func:`hscc_search.compression.ranks.design.design_layer`, a field of the setting, and a line in ``choice``.
"""
