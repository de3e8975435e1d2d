"""`python -m backupd`: the command line for those who have no entry point on their PATH. Holds no logic of its own."""

import sys

from backupd.cli import main

if __name__ == "__main__":
    sys.exit(main())
