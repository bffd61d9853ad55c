import itertools

import pytest

from experiments import tasks
from twin import Twin


@pytest.fixture(scope="session")
def twin():
    with Twin(workers=2, cache=None, seed=0) as running:
        yield running


@pytest.fixture(scope="session")
def drawn():
    return list(itertools.islice(tasks.candidates(0), 24))
