"""What a person reads of a study or a comparison. The only folder that needs Plotly; it prints nothing.

table -> terminal, formats (JSON and CSV) and page; figures -> page -> live; comparison beside them.
"""
