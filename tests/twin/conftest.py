import pytest
from hypothesis import HealthCheck, settings
from toys import toy_pool

from twin import Settings, Twin
from twin.physical import Counts, Point
from twin.pool import Pool

settings.register_profile(
    "twin", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("twin")


@pytest.fixture(scope="session")
def twin():
    with Twin(workers=2, cache=None, seed=0, method="link") as twin:
        twin.start()
        yield twin


@pytest.fixture(scope="session")
def precise():
    """A twin that always spends 4096 blocks."""
    with Twin(
        workers=2, seed=1, method="link", max_blocks=4096, enough_block_errors=1 << 30
    ) as twin:
        twin.start()
        yield twin


@pytest.fixture(scope="session")
def simulate():
    """Counts of every point, in order, on two workers; see twin.physical.Point.rounds."""
    pool = Pool(2, Settings(method="link"), seed=0)
    pool.start()

    def run(points):
        counts = {}
        for point, answer, _ in pool.run(sorted(set(points), key=Point.key)):
            assert isinstance(answer, Counts), answer
            counts[point] = answer
        return [counts[point] for point in points]

    yield run
    pool.close()


@pytest.fixture
def toy_twin(tmp_path):
    with Twin(workers=2, cache=tmp_path / "twin.sqlite", pool=toy_pool) as twin:
        yield twin
