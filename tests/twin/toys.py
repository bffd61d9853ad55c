"""A pool whose workers answer at once from a formula, or die when told: see toy_worker.py."""

import sys
from functools import partial
from pathlib import Path

from twin.pool import Pool

TOY_WORKER = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))
toy_pool = partial(Pool, command=TOY_WORKER)
