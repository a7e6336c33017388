"""Entry of ``python -m graftwork_multiscale``."""

import sys

from graftwork_multiscale.cli import main

sys.exit(main())
