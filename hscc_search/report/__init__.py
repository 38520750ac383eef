"""Reports on a study or a comparison. The only folder that needs Plotly; it prints nothing.

``table`` holds the rows of the front, which ``terminal`` and ``page`` show; ``formats`` writes JSON and CSV;
``figures`` draws what ``page`` puts into a page and ``live`` serves; ``comparison`` reports on a comparison.
"""
