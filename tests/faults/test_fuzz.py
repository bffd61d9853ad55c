"""Hostile responses: see fuzz_responses.py, which runs a million of them."""

import fuzz_responses
import pytest


def test_thirty_thousand_hostile_responses_are_read_or_refused(capsys):
    fuzz_responses.main(30_000, seed=1)
    assert "of them workflows" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["a reader that raises", "a reward that is no number"])
def test_the_fuzzer_finds_what_is_wrong(monkeypatch, wrong):
    if wrong == "a reader that raises":
        monkeypatch.setattr(fuzz_responses, "read", lambda text: 1 / 0)
    else:
        answer = fuzz_responses.judge_readings([fuzz_responses.TASK], [(None, "x")], None)[0]
        monkeypatch.setattr(
            fuzz_responses, "judge_readings", lambda *_: [answer._replace(R=float("nan"))]
        )
    with pytest.raises(SystemExit, match="ZeroDivisionError|AssertionError"):
        fuzz_responses.main(10)
