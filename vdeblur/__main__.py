"""`python -m vdeblur` is the command `vdeblur`."""

import sys

from vdeblur.cli.main import main

sys.exit(main())
