"""``python -m liteseg``."""

import sys

from liteseg.cli import main

sys.exit(main())
