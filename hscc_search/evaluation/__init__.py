"""The cost of a network and the quality of its answers.

``cost`` holds MACs, FLOPs, parameters and bytes, and ``counters`` counts them. ``predictions`` runs a network over
images, and ``scores`` says what is kept of its scores. ``quality`` measures them with standard errors, by the draws of
``draws``, and ``maps`` those of answers that are maps of classes. Metrics of scores are in ``on_draws``, and ``own``
calls those of a study's own.
"""
