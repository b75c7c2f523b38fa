"""`python -m mask_impact` is the command `mask-impact`."""

import sys

from mask_impact.commands.entry import main

if __name__ == "__main__":
    sys.exit(main())
