"""What is shipped: a folder that runs, and the check that it still does.

folder.py is the format of the folder, export.py writes one and card.py its model card. loading.py makes a torch module
from it, see deployed.py, and needs nothing of what searches or compresses.
"""
