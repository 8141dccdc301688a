"""`python -m autospec`: hands over to the command line."""

from __future__ import annotations

import sys

from autospec.cli import main

if __name__ == "__main__":
    sys.exit(main())
