"""The search around the compressor: what a trial measures, how a study goes on, who is on the front."""
