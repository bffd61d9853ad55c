"""What S_t measures: by kind of perturbation, a syntax mask or the link."""

import os

import pytest

from experiments.studies.sensitivity import KINDS, WORDS, draw, measure
from experiments.world import tasks as task_files


@pytest.mark.slow
def test_in_kind_sensitivity_is_of_the_service_alone_and_the_papers_mostly_of_the_grammar(
    twin, tmp_path
):
    tasks = task_files.load_splits(os.path.join(task_files.DATA, "link-lite"))["test"][:8]
    found = {kind: measure(tasks, 2, kind, twin) for kind in KINDS}
    strict, tolerant, in_kind = (found[kind] for kind in KINDS)
    assert in_kind["tokens"]["unreadable"] == 0 and in_kind["fields"][WORDS]["service"][0] == 0
    assert strict["tokens"]["unreadable"] > 5 * strict["tokens"]["service"] > 0
    assert tolerant["tokens"]["service"] > 5 * tolerant["tokens"]["unreadable"]
    order = {name: row["service"][0] for name, row in in_kind["fields"].items()}
    assert (
        min(order[name] for name in ("num_prb", "code_rate", "bits_per_symbol"))
        > 2 * order["combining"]
    )
    for row in in_kind["fields"].values():
        value, low, high = row["service"]
        assert low <= value <= high and 0 < row["responses"] <= len(tasks)
    draw(found, str(tmp_path / "sensitivity.png"))
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
