"""Starts the app: python examples/desktop/main.py"""

import sys

from minicache_desktop.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
