"""``python -m misr``."""

import sys

from misr.cli import main

sys.exit(main())
