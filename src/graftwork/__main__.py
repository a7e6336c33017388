"""``python -m graftwork``."""

import sys

from graftwork.cli import main

sys.exit(main())
