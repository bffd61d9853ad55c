"""What the demo tells of a request is what the stages and the twin say of it."""

import dataclasses

import jax
import numpy as np
import pytest
from asking import REQUEST
from flax import nnx

from demo.engine import SALT, Asked, Engine
from experiments.world.orchestration import read
from experiments.world.scoring import judge
from rldtf_jax.config import ConfigError
from rldtf_jax.sample import pad_prompts, row_keys, sample
from twin import Scenario

TARGETS = {"delay_ms": 1.0, "throughput_mbps": 5.0, "ber": 1e-3}


@pytest.fixture(scope="module")
def asked(engine):
    return Asked(
        REQUEST,
        engine.options()["start"],
        TARGETS,
        weights=True,
        look=True,
        rivals=("instruct", "sturdiest", "oracle"),
    )


@pytest.fixture(scope="module")
def played(engine, asked):
    return list(engine.play(asked))


def of(played, name):
    return [payload for event, payload in played if event == name]


def test_events_come_in_the_order_that_is_promised(played):
    names = [name for i, (name, _) in enumerate(played) if i == 0 or played[i - 1][0] != name]
    assert names == [
        "prompt",
        "token",
        "answer",
        "workflow",
        "look",
        "progress",
        "verdict",
        "weights",
        "rival",
        "done",
    ]


def test_the_tokens_are_those_of_sample_and_spell_the_answer(engine, asked, played):
    model, tok = engine.models["instruct"]
    keys = row_keys(jax.random.fold_in(jax.random.key(asked.seed), SALT), np.arange(1))
    (prompt,) = of(played, "prompt")
    samples = sample(
        *nnx.split(model),
        *pad_prompts([tok.apply_chat(prompt["text"])]),
        keys,
        temperature=0.0,
        eos_id=tok.eos_id,
        max_new_tokens=engine.run.config.rldtf.sample.max_new_tokens,
    )
    ids = samples.tokens_BxR[0, : samples.lengths_B[0]].tolist()
    (answer,) = of(played, "answer")
    assert answer == {"text": tok.decode(ids[:-1]), "ended": True}
    assert "".join(token["text"] for token in of(played, "token")) == answer["text"]
    np.testing.assert_allclose(
        np.log([max(token["p"], 1e-4) for token in of(played, "token")]),
        samples.logp_BxR[0, : len(ids)],
        atol=2e-3,
    )


def test_the_verdict_is_the_judges(engine, asked, played):
    (verdict,) = of(played, "verdict")
    (answer,) = of(played, "answer")
    task = engine.checked(asked)[1]
    (judgement,) = judge(
        [task], [answer["text"]], engine.run.twins("evaluate"), engine.run.config.rldtf.reward
    )
    assert (verdict["reward"], verdict["fulfilled"]) == (judgement.R, judgement.fulfilled)
    assert list(verdict["measured"].values()) == [float(x) for x in task.measured(judgement.qos)]


def test_blocks_are_counted_as_the_twin_counts_them(engine, asked, played):
    progress = of(played, "progress")
    assert len(progress) > 1 and [p["blocks"] for p in progress] == sorted(
        {p["blocks"] for p in progress}
    )
    workflow, _ = read(of(played, "answer")[0]["text"])
    (qos,) = engine.counting.evaluate([(Scenario(**asked.scenario), workflow)])
    assert (
        progress[-1]["blocks"] == qos.num_blocks
        and progress[-1]["block_errors"] == qos.block_errors
    )
    (look,) = of(played, "look")
    assert (
        len(look["gain_db"]) == 14
        and 0 < len(look["received"]) <= 1200
        and len(look["sent"]) == 2**workflow.bits_per_symbol
    )


def test_the_delays_blocks_and_terms_are_the_workflows(played):
    shown, verdict = of(played, "workflow")[0], of(played, "verdict")[0]
    assert [block["name"] for block in shown["blocks"]][0] == "encode" and shown["code"].startswith(
        "grid("
    )
    first = sum(ms for term, ms in shown["delay_ms"].items() if term != "HARQ round trip")
    assert first <= verdict["measured"]["delay_ms"] * (1 + 1e-9)


def test_words_weigh_nothing_and_values_do(played):
    (weights,) = of(played, "weights")
    tokens = of(played, "token")
    assert len(weights["service"]) == len(weights["unreadable"]) == len(tokens)
    by_text = {
        token["text"].strip(): (u, s)
        for token, u, s in zip(tokens, weights["unreadable"], weights["service"])
    }
    assert by_text["with"][1] == 0  # no word of a service's
    assert max(weights["service"]) > 0.1 and max(weights["unreadable"]) > 0.1


def test_rivals_answer_for_the_same_targets_and_none_but_the_asked_ones(played):
    rivals = {rival["name"]: rival for rival in of(played, "rival")}
    assert set(rivals) == {"sturdiest", "oracle"}  # the model itself is no rival
    assert all(rival["targets"] == TARGETS for rival in rivals.values() if "targets" in rival)
    assert rivals["oracle"]["reward"] >= of(played, "verdict")[0]["reward"] - 0.1


def test_without_targets_the_model_infers_them(engine, asked):
    played = list(
        engine.play(dataclasses.replace(asked, targets=None, weights=False, look=False, rivals=()))
    )
    (intent,) = of(played, "intent")
    assert of(played, "verdict")[0]["targets"] == intent
    assert not of(played, "look") and not of(played, "weights")


def test_a_module_that_fails_is_not_used(engine, asked):
    def workflow(*absent):
        scenario = asked.scenario | {"absent": tuple(sorted({*asked.scenario["absent"], *absent}))}
        return of(
            list(
                engine.play(
                    dataclasses.replace(
                        asked, scenario=scenario, look=False, weights=False, rivals=()
                    )
                )
            ),
            "workflow",
        )[0]["workflow"]

    assert (workflow()["estimator"], workflow()["detector"]) == ("lmmse", "lmmse")
    assert workflow("estimate.lmmse")["estimator"] == "ls"
    assert workflow("detect.lmmse")["detector"] == "zf"


def test_a_site_drifts_step_by_step(engine):
    sites = [engine.drift(3, step).scenario for step in range(8)]
    assert sites == [engine.drift(3, step).scenario for step in range(8)]
    assert all(
        abs(a.snr_db - b.snr_db) <= 2 and abs(a.max_prb - b.max_prb) <= 1
        for a, b in zip(sites, sites[1:])
    )
    assert len({site.snr_db for site in sites}) > 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "gpt"}, "model = 'gpt'"),
        ({"rivals": ("me",)}, "rivals = 'me'"),
        ({"request": " "}, "request"),
        ({"scenario": {"snr_db": 999}}, "snr_db"),
        ({"scenario": {"absent": ["rm -rf"]}}, "absent"),
        ({"targets": {"delay_ms": 1}}, "throughput_mbps"),
    ],
)
def test_a_wrong_field_is_named(engine, asked, changes, message):
    with pytest.raises(ConfigError, match=message):
        next(engine.play(dataclasses.replace(asked, **changes)))


def test_any_model_directory_serves_and_is_offered_first(engine, asked):
    directory = engine.run.config.model.directory  # of the model that ships
    other = Engine(engine.run, directory)
    try:
        assert list(other.options()["models"]) == ["model", "instruct"]
        plain = dataclasses.replace(asked, weights=False, look=False, rivals=("instruct",))
        (one,), (rival,) = (of(list(other.play(plain)), name) for name in ("verdict", "rival"))
        assert rival["reward"] == one["reward"] and rival["workflow"] == one["workflow"]
    finally:
        other.close()
    with pytest.raises(ConfigError, match="no such directory"):
        Engine(engine.run, "/no/such/directory")
