"""Trials as points in the space of a study's objectives. Numbers only: needs neither torch nor Optuna.

objectives -> points -> front -> domination -> resampling -> confidence -> rules -> selection; the hypervolume beside
them.
"""
