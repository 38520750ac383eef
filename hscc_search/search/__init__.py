"""The search around the compressor: the study, its space and samples, its trials, and what is stored of them."""
