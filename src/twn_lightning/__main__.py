"""`python -m twn_lightning <verb>`: the same as `twn <verb>`."""

import sys

from twn_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
