"""The dense network: the one that is compressed, with its weights and its images.

In the order in which they come into play: ``device`` chooses where networks run, ``networks`` builds one by name,
which ``names`` knows without importing anything slow
(``torchvision_operators`` lets torchvision import beside a CPU build of torch), ``weights`` reads and identifies
weights, ``training`` trains it once, from ``epochs`` and ``augmentation``, and ``opened`` puts images, split and
network together. ``fine_tuning`` trains a compressed network further, with the dense one as its teacher.
"""
