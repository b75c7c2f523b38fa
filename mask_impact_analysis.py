"""Masking-impact maps of a language model: `python mask_impact_analysis.py --help`."""

import sys

from mask_impact.commands.entry import main_text as main

if __name__ == "__main__":
    sys.exit(main())
