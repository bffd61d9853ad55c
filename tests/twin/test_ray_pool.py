"""The same Twin over Ray: a local cluster of two nodes."""

from functools import partial

import pytest
import ray
from ray.cluster_utils import Cluster
from test_pool import DEADLY, DEADLY_ONCE, FAULTY, STOPPING, pairs
from toys import TOY_WORKER

from twin import Scenario, Twin, TwinError, Workflow
from twin.ray_pool import RayPool

toy_pool = partial(RayPool, command=TOY_WORKER)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def toy_twin(cluster, tmp_path):
    with Twin(workers=2, cache=tmp_path / "twin.sqlite", pool=toy_pool) as twin:
        yield twin


def test_the_workers_are_spread_over_the_nodes(toy_twin):
    toy_twin.start()
    where = [
        node.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
        for node in toy_twin._pool.nodes
    ]
    assert len(set(ray.get(where))) == 2


def test_results_come_in_order_and_workers_that_die_are_replaced(toy_twin):
    snrs = [3, 1, *range(4, 13), DEADLY_ONCE, *range(16, 40), 3]
    assert [q.bit_errors for q in toy_twin.evaluate(pairs(*snrs))] == [100 + s for s in snrs]


def test_a_point_that_kills_twice_fails_alone(toy_twin):
    answers = toy_twin.evaluate(pairs(1, DEADLY, 2, FAULTY, 3), return_exceptions=True)
    assert [isinstance(a, TwinError) for a in answers] == [False, True, False, True, False]


def test_a_point_that_hangs_fails_alone(cluster):
    with Twin(workers=2, pool=partial(toy_pool, point_limit_s=1.0)) as twin:
        answers = twin.evaluate(pairs(1, STOPPING, 2), return_exceptions=True)
    assert [isinstance(a, TwinError) for a in answers] == [False, True, False]


def test_real_simulations_give_what_one_machine_gives(cluster, twin):
    scenarios = [
        Scenario(channel=c, snr_db=snr) for c in ("awgn", "rayleigh", "tdl-b") for snr in (2, 5)
    ]
    some = [(s, Workflow(code="none", num_layers=n)) for s in scenarios for n in (1, 2)]
    with Twin(workers=2, pool=RayPool) as other:
        assert other.evaluate(some) == twin.evaluate(some)
        assert other.traces == 0  # native stages are not traced


def test_a_call_outlives_a_node(cluster, toy_twin):
    lost = next(node for node in cluster.list_all_nodes() if not node.head)

    def lose(done, total):
        if done == 100:
            cluster.remove_node(lost, allow_graceful=False)

    snrs = [s / 100 for s in range(2000) if s not in (1300, 1400, 1500)]
    answers = toy_twin.evaluate(pairs(*snrs), progress=lose)
    assert [q.bit_errors for q in answers] == [int(100 + s) for s in snrs]
    cluster.add_node(num_cpus=1)  # and works on with both
    assert len(toy_twin.evaluate(pairs(*range(30, 60)))) == 30
