"""`python -m minicache_cpp COMMAND …` is `minicache COMMAND …`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
