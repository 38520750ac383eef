"""Export of a trial as a folder that runs, checked by running it.

``folder`` is the format of the folder, ``export`` writes one and ``card`` its model card; ``front`` writes one for each
trial of the front, and ``index`` what there is of them. ``loading`` makes a torch
module from it (``deployed``), and needs neither the search nor what learns regions, clusters and factors.
"""
