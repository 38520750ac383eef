"""Factors of one layer, fitted to what the dense network answered from what the layers before it deliver.

The basis filters come first, and from the dense responses: they answer along the leading axes of each cluster
(:class:`hscc_search.compression.division.partition.Block`). They are run on what is delivered, as the compressed layer
will do anyway, and the recombination is fitted to what they answer: least squares towards the dense responses
(:func:`hscc_search.compression.factors.refit`), then steps that know of the activation behind the layer
(:func:`hscc_search.compression.factors.refine`). The same answers, recombined, are the layer's output. So a fit costs
little more than the compressed layer's own forward pass, and never one of the dense layer.

A fully connected layer has one sample per image, and its first axes are fitted to what is delivered as well: a few
more than its rank are considered, and the rank goes to those that are predicted best
(:func:`hscc_search.compression.factors.fit_predictor`).

From the top: ``layer`` is the entrance, ``maps`` and ``vectors`` fit the two kinds of layers, ``region`` is one region
of a map, ``target`` the dense responses that a fit aims at, ``weights`` puts results into modules.
"""
