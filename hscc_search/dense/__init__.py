"""The dense network: the one that is compressed, with its weights and its images.

In the order in which they come into play: ``device`` chooses where networks run, ``networks`` builds one by name,
which ``names`` knows without importing anything slow, and has it ``checked``, ``identity`` says what it is, ``start``
whether it is to be trained, ``weights`` reads, writes and identifies weights (``checkpoint_names`` fits their names),
``cached`` knows where trained ones lie, ``training`` trains it once, from ``epochs`` and ``augmentation``, and
``opened`` puts images, split and network together. ``notices`` says what is wrong with what it answers.
``fine_tuning`` trains a compressed network further, with the dense one as its teacher.
"""
