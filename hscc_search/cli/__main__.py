"""Run the command line as ``python -m hscc_search.cli``."""

from hscc_search.cli import main

if __name__ == "__main__":
    main()
