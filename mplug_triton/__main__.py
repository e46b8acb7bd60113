"""`python -m mplug_triton`: the same as the command `mplug`, for torchrun and for environments without scripts."""

import sys

from mplug_triton.command import main

sys.exit(main())
