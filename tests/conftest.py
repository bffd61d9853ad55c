"""What all tests share."""

import contextlib

from hypothesis import settings
import pytest

settings.register_profile("rldtf", deadline=None)  # the first example of a test compiles, which no deadline allows for
settings.load_profile("rldtf")


ONE_RUN = ("test_ablate", "test_pipeline")  # files that share a trained run


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """With pytest-xdist a file stays on one worker, which keeps its fixtures."""
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group("run" if name in ONE_RUN else name))


@pytest.fixture
def compilations():
    """A context manager that yields the list of what XLA compiles inside it."""
    import jax

    @contextlib.contextmanager
    def recorded():
        seen = []

        def listen(event, duration, **details):
            if event.endswith("backend_compile_duration"):
                seen.append(details.get("fun_name", event))

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield seen
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return recorded
