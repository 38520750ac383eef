"""HSCC and its peers at the same FLOPs, on the same splits.

``methods`` are what is compared, ``measure`` makes and measures their networks, ``folder`` and ``record`` keep each of
them in a file of its own, and ``summary`` puts the splits together.
"""
