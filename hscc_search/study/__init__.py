"""The search around the compressor.

``study`` starts and continues a study; ``space`` holds what it samples and ``propose`` draws the next sample; ``trial``
compresses and measures, ``refinement`` and ``deployment`` refine and round; ``record`` is the stored format,
``stored_study`` and ``catalogue`` read it; ``workers`` share the trials.
"""
