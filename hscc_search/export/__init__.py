"""What is shipped: a folder that runs, and the check that it still does."""
