"""The commands: a thin layer that reads options, calls the package, and prints.

``entry`` holds the group of all commands and the exit codes; ``inspection`` the one that looks at a network, ``work``
the commands that compute trials, ``results`` those that use them, ``exported`` those on folders that were exported,
``storages`` those on a storage, ``data`` those on images and ``cache`` those on the cache; ``options`` and ``printing``
are shared.
torch and Optuna take seconds to import, so a command imports what it runs when it runs.
"""

from hscc_search.cli.entry import commands, main

__all__ = ["commands", "main"]
