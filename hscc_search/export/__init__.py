"""Export of a trial as a folder that runs, checked by running it.

``folder`` is the format of the folder and ``manifest`` what says whether it is whole; ``run`` goes with it and needs
nothing of this package. ``export`` writes one, ``checking`` runs its models, ``formats`` writes further files and
``card`` its model card; ``front`` writes one for each trial of the front, and ``index`` what there is of them.
``loading`` makes a torch module from it (``deployed``) once ``sizes`` has nothing against it, and needs neither the
search nor what learns regions, clusters and factors; ``verifying`` checks all of a folder.
"""
