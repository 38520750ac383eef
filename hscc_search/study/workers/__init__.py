"""The workers of a study.

``worker`` is one of them, ``crew`` several on one machine; ``ledger`` holds the trials that they share, and
``heartbeat`` tells whether the worker of a trial is alive.
"""
