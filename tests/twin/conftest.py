import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from twin import Twin
from twin.pool import Pool

settings.register_profile("twin", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("twin")

# Workers that answer at once from a formula, or die when a point says so: see the file
TOY_WORKER = (sys.executable, str(Path(__file__).with_name("toy_worker.py")))
toy_pool = partial(Pool, command=TOY_WORKER)


@pytest.fixture(scope="session")
def twin():
    with Twin(workers=2, cache=None, seed=0) as twin:
        twin.start()
        yield twin


@pytest.fixture(scope="session")
def precise():
    """A twin that always spends 4096 blocks."""
    with Twin(workers=2, seed=1, max_blocks=4096, enough_block_errors=1 << 30, enough_bits=1 << 40) as twin:
        twin.start()
        yield twin


@pytest.fixture
def toy_twin(tmp_path):
    with Twin(workers=2, cache=tmp_path / "twin.sqlite", pool=toy_pool) as twin:
        yield twin
