"""Masking-impact maps of a vision-language model: `python mask_impact_vl.py --help`."""

import sys

from mask_impact.commands.entry import main_vl as main

if __name__ == "__main__":
    sys.exit(main())
