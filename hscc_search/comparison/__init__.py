"""HSCC and its peers at the same FLOPs, on the same splits.

``methods`` names the compared methods, ``measure`` makes and measures their networks, ``folder`` and ``record`` store
each network in its own file, and ``summary`` puts the splits together.
"""
