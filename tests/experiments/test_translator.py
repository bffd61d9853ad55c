"""The `model` translator: a policy that has had lessons reads orchestrations as the grammar does,
also inside a training step.
"""

import random

import numpy as np
import pytest
from flax import nnx

from experiments.stages.rldtf import value_model
from experiments.stages.run import sequences
from experiments.world import tasks
from experiments.world.environment import TwinEnvironment
from experiments.world.orchestration import translate
from experiments.world.translator import REQUEST, ModelTranslator, lessons
from rldtf_jax import rldtf, sft
from rldtf_jax.config import OptimConfig, RLDTFConfig, SampleConfig, SFTConfig
from rldtf_jax.judge import Policy
from rldtf_jax.qwen2 import Qwen2, Qwen2Config
from rldtf_jax.reward import RewardConfig
from rldtf_jax.tokenizer import train_bpe


@pytest.fixture(scope="module")
def taught(twin, drawn, tmp_path_factory):
    """Four tasks, a response to each, and environment and model that know both these and their
    translations by heart.
    """
    rng = random.Random(0)
    four = drawn[:4]
    responses = [task.response(tasks.random_workflow(rng, task.scenario)) for task in four]
    pairs = [*((task.prompt(), text) for task, text in zip(four, responses)), *lessons(responses)]
    tokenizer = train_bpe([text for pair in pairs for text in pair] * 2, 600)
    budget = max(len(tokenizer.encode(text)) for text in responses) + 1
    environment = TwinEnvironment(
        four, tokenizer, twin, RewardConfig(), translator=ModelTranslator(tokenizer, budget)
    )
    shape = Qwen2Config(tokenizer.vocab_size, 64, 128, 2, 4, 2, rope_theta=1e4)
    config = SFTConfig(
        steps=150, batch_size=8, save_every=150, optim=OptimConfig(lr=5e-3, warmup_steps=5)
    )
    model = sft.train(
        Qwen2(shape, rngs=nnx.Rngs(0)),
        sequences(tokenizer, pairs),
        config,
        seed=0,
        directory=str(tmp_path_factory.mktemp("taught")),
        boards=(),
    )
    return environment, model, responses, budget


def test_lessons_are_the_grammars_and_leave_out_what_it_cannot_read(drawn):
    text = drawn[0].response(tasks.random_workflow(random.Random(0), drawn[0].scenario))
    ((request, program),) = lessons([text, "nothing", text.replace(" PRB.", " PRBs.")])
    assert request == REQUEST + text.rpartition("</think>")[2] and program == translate(text)


def test_what_the_policy_translates_is_judged_as_what_the_grammar_does(taught, twin):
    environment, model, responses, _ = taught
    by_grammar = TwinEnvironment(environment.tasks, environment.tokenizer, twin, RewardConfig())
    ours = environment.judge_text(environment.tasks, responses, Policy(*nnx.split(model)))
    theirs = by_grammar.judge_text(environment.tasks, responses)
    assert ours.failure_M == theirs.failure_M == [None] * 4
    np.testing.assert_array_equal(ours.reward_M, theirs.reward_M)


def test_what_cannot_be_translated_is_said_in_a_word(taught):
    environment, model, responses, _ = taught
    untaught = Policy(*nnx.split(Qwen2(model.config, rngs=nnx.Rngs(1))))
    assert {kind for _, kind in environment.translator.read(responses, untaught)} <= {
        "translation",
        "parse",
    }
    read = environment.translator.read(
        ["<think> on and on", "9 PRB " * 500, responses[0]], Policy(*nnx.split(model))
    )
    assert [kind for _, kind in read] == ["think", "long", None]


def test_a_training_step_asks_the_policy_it_samples_from_to_translate(taught):
    environment, model, _, budget = taught
    config = RLDTFConfig(
        prompts_per_step=4,
        num_perturb=1,
        sample=SampleConfig(max_new_tokens=budget, temperature=0.05),
        policy=OptimConfig(lr=1e-4),
    )
    models, state = rldtf.initial(model, value_model(model, 0), config, 0)
    asked, read = [], environment.translator.read
    environment.translator.read = lambda texts, policy: asked.append(policy) or read(texts, policy)
    _, metrics = rldtf.rldtf_step(models, [rldtf.Arm(config, 0, environment)], (state,), 0)
    (metrics,) = metrics["arms"]
    assert len(asked) == 1 and asked[0].graphdef == models.static.policy_def
    assert (
        metrics["failed"] == 0 and metrics["skipped"] == 0 and metrics["weight/over_threshold"] > 0
    )
