"""`python -m vdeblur` is the command `vdeblur`."""

import sys

from vdeblur.cli import main

sys.exit(main())
