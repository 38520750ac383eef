"""The cost of a network and the quality of its predictions.

``cost`` holds MACs, FLOPs, parameters and bytes, and ``counters`` counts them. ``predictions`` runs a network over
images, and ``quality`` compares the predicted classes with the labels.
"""
