"""What all tests share."""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Many tests start the same commands: what one process compiles, the others of this run read. The
# first process makes the directory, pytest's workers and all that tests start inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="programs")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# the first example of a test compiles, which no deadline allows for
settings.register_profile("rldtf", deadline=None)
settings.load_profile("rldtf")


ONE_RUN = ("test_ablate", "test_pipeline")  # files that share a trained run
# they go first, the longest at the head, so that no worker is left alone with one of them
LONGEST = (
    *ONE_RUN,
    "test_hosts",
    "test_rollouts",
    "test_conformance",
    "test_arms",
    "test_neural",
    "test_link",
    "test_sample",
    "test_update",
    "test_qwen2",
    "test_emulator",
    "test_smollm2",
    "test_runs",
    "test_rldtf",
    "test_network_train",
    "test_pretraining",
)


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With pytest-xdist a file stays on one worker, which keeps its fixtures."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            name = nodeid.partition("::")[0]
            return "run" if Path(name).stem in ONE_RUN else name

    return ByFile(config, log)


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


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file():
    """What was compiled for a file is dropped behind it: all together take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="module")
def browser():
    """Headless: the system's Chromium, or else the one that `playwright install chromium` left. Its
    event loop ends with the file, so that another one can have its own.
    """
    from playwright.sync_api import sync_playwright

    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--no-first-run", *(f"--disable-{part}" for part in quiet)],
        )
        yield browser
        browser.close()
