"""Fit of one layer's factors: the input comes from the layers compressed before it, the target from the dense network.

The basis filters come first, from the dense responses alone: they answer along the leading axes of each cluster
(:class:`hscc_search.compression.division.partition.Block`). They are run on the delivered input, as the compressed
layer will do anyway, and the recombination is fitted to their answers: least squares towards the dense responses
(:func:`hscc_search.compression.factors.refit`), then steps that take account of the activation behind the layer
(:func:`hscc_search.compression.factors.refit_clipped`). The same answers, recombined, are the layer's output. So the
fit of a factored layer costs little more than its own forward pass, and none of the dense layer.

A fully connected layer on vectors has one sample per image, so its basis filters are fitted to the delivered input as
well: more axes than its rank are considered, and it keeps the combinations that are predicted best
(:func:`hscc_search.compression.factors.fit_predictor`, :func:`hscc_search.compression.factors.factorise`).

From the top: ``layer`` is the entry, ``maps`` and ``vectors`` fit the two kinds of layers, ``region`` is one region
of a map, ``target`` the dense responses that a fit aims at, ``weights`` puts results into modules.
"""
