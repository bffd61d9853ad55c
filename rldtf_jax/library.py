"""RLDTF as a call, for notebooks and other people's programs: no configuration files, and no run
directory unless one is named.
"""

from typing import Any, Callable

import jax
from flax import nnx

from rldtf_jax import critic as critics
from rldtf_jax import rldtf
from rldtf_jax.config import RLDTFConfig
from rldtf_jax.judge import Arm, Environment
from rldtf_jax.loop import MAX_SKIPPED_IN_A_ROW, Diverged
from rldtf_jax.qwen2 import Qwen2


def train(
    policy: Qwen2,
    env: Environment,
    config: RLDTFConfig = RLDTFConfig(),
    *,
    critic: Qwen2 | None = None,
    seed: int = 0,
    directory: str | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[Qwen2, list[dict[str, Any]]]:
    """Trains a policy by RLDTF (Eq. 1-9); the one that is given stays as it is.

    Args:
      critic: a model with a value head; default: a fresh head on the policy's backbone.
      directory: where checkpoints and metrics go, so that a killed call goes on (`rldtf.train`);
        default: nothing is written.
      on_step: called with (step, metrics) after every step; with a directory for all steps at the
        end.

    Returns:
      (policy, metrics of every step). The same weights with a directory as without, to the bit.

    Raises:
      Diverged: several updates in a row were not finite.
    """
    if critic is None:
        critic = critics.with_backbone(
            Qwen2(policy.config, rngs=nnx.Rngs(seed), head="value"), policy
        )
    if directory is not None:
        from rldtf_jax import metrics as records

        trained = rldtf.train(
            policy, critic, env, config, seed=seed, directory=directory, boards=()
        )
        history = records.read(directory)
        for row in history if on_step else ():
            on_step(row["step"], row)
        return trained, history
    models, state = rldtf.initial(policy, critic, config, seed)
    arm, history = Arm(config, seed, env), []
    for step in range(config.steps):
        (state,), found = rldtf.rldtf_step(models, [arm], (state,), step)
        history.append({"step": step, **jax.device_get(found["arms"][0])})
        if on_step:
            on_step(step, history[-1])
        if history[-1].get("skipped_in_a_row", 0) >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{MAX_SKIPPED_IN_A_ROW} updates in a row were not finite by step {step + 1}"
            )
    return nnx.merge(models.static.policy_def, models.policy(state)), history
