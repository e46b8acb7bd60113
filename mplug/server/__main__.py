"""`python -m mplug.server DIR`: see `mplug.server.command`."""

import sys

from mplug.server.command import main

sys.exit(main())
