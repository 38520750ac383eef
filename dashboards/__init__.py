"""What a person looks at: Plotly figures, the self-contained page, the live page beside optuna-dashboard.

Reads from ``hscc_search``, which knows nothing of it.
"""
