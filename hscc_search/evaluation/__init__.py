"""What a network costs and how well it does: ``cost`` and ``counters``, ``predictions`` and ``quality``."""
