"""The stage of pre-training, from a corpus to the model that phase 1 starts from."""

import json
import os
import random
import signal

import pytest
from running import finish, start, wait_for

from experiments.config import load
from experiments.stages.pretrain import pretrained
from experiments.stages.run import opened, stage_model
from rldtf_jax.config import ConfigError
from rldtf_jax.metrics import read

DOMAIN = "the grant of {} resource blocks carries {} kilobits in a slot of {} symbols. ".format
GENERAL = "on the {} of May the ship left for {} with {} people and a whale on board. ".format


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Lines of two kinds of text, as experiments.corpus leaves them."""
    directory, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split in ("train", "held_out"):
        with open(directory / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for i in range(400):
                share, line = (("domain", DOMAIN), ("general", GENERAL))[i % 2]
                text = "".join(line(*(rng.randrange(90) for _ in range(3))) for _ in range(8))
                file.write(json.dumps({"share": share, "name": str(i), "text": text}) + "\n")
    return str(directory)


def keys(corpus, run_dir, **options):
    pretrain = {"corpus": corpus, "width": 64, "held_out": 8, "sft.steps": 24} | options
    pretrain |= {"sft.batch_size": 8, "sft.save_every": 4, "sft.optim.lr": "3e-3"}
    return [
        "preset=smoke",
        f"run_dir={run_dir}",
        *(f"pretrain.{key}={value}" for key, value in pretrain.items()),
    ]


def told(run_dir):
    with open(os.path.join(run_dir, "pretrain", "perplexity.json"), encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run directory, stopped in the middle of pre-training and gone on with."""
    run_dir = str(tmp_path_factory.mktemp("pretrain") / "run")
    arguments = keys(corpus, run_dir)
    process = start(*arguments, module="experiments.stages.pretrain")
    wait_for(os.path.join(run_dir, "pretrain", "checkpoints", "8"), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, _, err = finish(*arguments, module="experiments.stages.pretrain")
    assert code == 0, err
    assert "held-out perplexity, general:" in err
    return run_dir


def test_both_shares_are_learnt_and_told(finished):
    found = told(finished)
    assert found["tokens"] == {"domain": 0.75 * 24 * 8 * 64, "general": 0.25 * 24 * 8 * 64}
    for share in ("domain", "general"):
        assert found["after"][share] < 0.5 * found["before"][share]


def test_without_the_general_share_it_is_forgotten(corpus, finished, tmp_path):
    """The same from the model that knows both: with domain text alone the other gets worse."""
    arguments = keys(corpus, str(tmp_path / "alone"), general=0)
    arguments += [
        f"model.hf_dir={os.path.join(finished, 'pretrain', 'model')}",
        "pretrain.sft.steps=24",
    ]
    with opened(load(arguments), start_twin=False) as run:
        pretrained(run)
    found = told(str(tmp_path / "alone"))
    assert found["tokens"] == {"domain": 24 * 8 * 64}
    assert found["after"]["domain"] < found["before"]["domain"]
    assert found["after"]["general"] > found["before"]["general"]


def test_a_killed_run_ends_as_one_that_was_not(corpus, finished, tmp_path):
    with opened(load(keys(corpus, str(tmp_path / "whole"))), start_twin=False) as run:
        pretrained(run)
    assert told(str(tmp_path / "whole")) == told(finished)
    one, other = (
        [row["loss"] for row in read(os.path.join(path, "pretrain"))]
        for path in (str(tmp_path / "whole"), finished)
    )
    assert one == other and len(one) == 24


def test_phase_1_starts_from_it(corpus, finished):
    arguments = keys(corpus, finished) + ["instruct.sft.steps=1"]
    with opened(load(keys(corpus, finished)), start_twin=False) as run:
        kept = stage_model(run, "pretrain")
        assert (pretrained(run).embed[...] == kept.embed[...]).all()
    with pytest.raises(ConfigError, match="instruct.sft.steps"):  # of another config
        with opened(load(arguments), start_twin=False):
            pass


def test_another_corpus_under_the_same_name_is_refused(corpus, finished):
    path = os.path.join(corpus, "train.jsonl")
    with open(path, encoding="utf-8") as file:
        lines = file.read()
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(lines.splitlines()[0] + "\n")
        with pytest.raises(ConfigError, match="corpus = .*: expected"):
            with opened(load(keys(corpus, finished)), start_twin=False):
                pass
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(lines)


def test_too_small_a_corpus_is_one_line(corpus, tmp_path):
    arguments = keys(corpus, str(tmp_path / "run"), **{"sft.steps": 4000})
    code, _, err = finish(*arguments, module="experiments.stages.pretrain")
    assert code == 2 and "rows of domain text: expected 24000" in err.splitlines()[-1]


def test_the_command_wants_a_corpus(tmp_path):
    code, _, err = finish(
        "preset=smoke", f"run_dir={tmp_path}/run", module="experiments.stages.pretrain"
    )
    assert code == 2 and err.startswith("error: pretrain.corpus = None: expected a directory")
    code, _, err = finish(
        "preset=smoke", "pretrain.corpus=/nowhere", module="experiments.stages.pretrain"
    )
    assert code == 2 and err.startswith("error: pretrain.corpus = '/nowhere': expected")
