"""RLDTF (III.C), after rejection sampling.

python -m experiments.stages.rldtf preset=quickstart [key=value ...]
"""

import os
from typing import Callable

import numpy as np
from jax.sharding import Mesh

from experiments.config import ExperimentConfig, command
from experiments.files import exists, whole
from experiments.stages.ask import ask
from experiments.stages.emulate import emulated
from experiments.stages.reject import all_sampled, practised
from experiments.stages.rollouts import rollout_worker
from experiments.stages.run import (
    Run,
    fresh_model,
    keep_model,
    opened,
    respond,
    sequences,
    stage_model,
)
from experiments.world.environment import TwinEnvironment
from experiments.world.surrogate import Surrogate
from rldtf_jax import critic, rldtf
from rldtf_jax.config import RLDTFConfig
from rldtf_jax.qwen2 import Qwen2


def train_rldtf(run: Run) -> Qwen2:
    """RLDTF (III.C) from the model after rejection sampling."""
    done = stage_model(run, "rldtf")
    if done is not None:
        return done
    policy = ask(run)
    with rollout_worker(run.config) as worker:
        model = rldtf.train(
            policy,
            train_critic(run, policy),
            practice_environment(run, run.config.rldtf),
            run.config.rldtf,
            seed=run.config.seed,
            directory=run.path("rldtf"),
            watch=on_validation(run),
            worker=worker,
            **run.config.loop_options,
        )
    keep_model(run, model, "rldtf")
    return model


def practice_environment(run: Run, config: RLDTFConfig, seed: int | None = None) -> TwinEnvironment:
    """The tasks that RLDTF learns on and their judge, with a model of the twin where the config has
    a use for one; seed: of their order.
    """
    found = run.environment("train", seed, practised(run))
    if config.advantage == "expected":
        found.emulator = emulated(run)
    if run.config.surrogate.sure is not None:
        found.surrogate = Surrogate(
            emulated(run), run.config.surrogate.sure, run.config.surrogate.audit
        )
    return found


def on_validation(run: Run) -> Callable[[Qwen2], dict[str, float]] | None:
    """policy -> pass@1, pass@k and the mean and the best R of the k = evaluate.tries responses to
    each validation task; None for none.
    """
    k = run.config.evaluate.tries
    if not k:
        return None
    environment = run.environment("validation")

    def watch(policy: Qwen2) -> dict[str, float]:
        tries = np.repeat(np.arange(len(environment.tasks)), k)
        verdict = respond(
            run, policy, environment, tries, salt=3, temperature=run.config.rldtf.sample.temperature
        ).verdict
        good, R = verdict.fulfilled_M.reshape(-1, k), verdict.reward_M.reshape(-1, k)
        return {
            "validation/pass@1": good.mean(),
            f"validation/pass@{k}": good.any(1).mean(),
            "validation/reward": R.mean(),
            f"validation/best_of_{k}": R.max(1).mean(),
        }

    return watch


def train_critic(run: Run, policy: Qwen2) -> Qwen2:
    """The critic before the first step: the policy's backbone and a value head, fitted (Eq. 7) to
    the rewards that the rounds of rejection sampling have already paid for. Not fitted where the
    advantage asks for none.
    """
    if not run.config.rldtf.with_critic:
        return value_model(policy, run.config.seed, run.mesh)
    path = run.path("critic", "rows.npz")
    if not exists(path):  # encoded once: a resumed RLDTF stage comes by here too
        tasks, rows = run.tasks_of("train"), all_sampled(run)
        texts = sequences(
            run.tokenizer,
            [(tasks[row["task"]].prompt(run.config.tasks.prompt), row["response"]) for row in rows],
        )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path, "wb") as file:
            np.savez(
                file,
                **texts._asdict(),
                rewards=np.array([row["reward"] for row in rows], np.float32),
            )
    with np.load(path) as saved:
        rewarded = critic.Rewarded(**saved)
    return critic.train(
        value_model(policy, run.config.seed, run.mesh),
        rewarded,
        run.config.critic,
        seed=run.config.seed,
        directory=run.path("critic"),
        **run.config.loop_options,
    )


def value_model(policy: Qwen2, seed: int, device_mesh: Mesh | None = None) -> Qwen2:
    """A critic with the policy's backbone and a fresh value head."""
    return critic.with_backbone(fresh_model(policy.config, "value", seed, device_mesh), policy)


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        train_rldtf(run)


if __name__ == "__main__":
    command(main)
