"""A whole RL step beside TRL's GRPO and Tunix's PPO and GRPO: the same policy, prompts, number and
length of responses and a reward that costs nothing.

python -m experiments.benchmarks.peers --out experiments/results/peers/peers.json    a quarter of an hour; nothing else may run
python -m experiments.benchmarks.peers --contender rldtf                              one of them, its seconds as JSON

The policy is the one that ships after phase 1, 64 responses of at most 104 tokens to 16 prompts,
float32, one update a step. `rldtf` is the paper's step: critic, frozen reference, KL, entropy,
token weights of the grammar. `group` leaves out critic and weights. `trl` is GRPOTrainer as it
comes, with a reference (beta = 0.04). `tunix-ppo` has critic and reference, `tunix-grpo` the
reference, both as they come, with Tunix's own sampler and its Qwen2 with the same weights; its PPO
reads each prompt once for each of its samples. Contenders take turns, each turn in a process of its
own; the first steps of a turn, which compile, are left out. A figure is the mean over the steps of
all turns with its 95 % interval (bootstrap). Needs the extra `trl`, and Tunix (`pip install
google-tunix`).
"""  # noqa: E501

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from experiments.files import show
from experiments.stages.machine import processor
from experiments.statistics import mean_interval
from experiments.world.tasks import DATA, load_splits
from experiments.world.trl_reward import in_turns, shipped_policy

POLICY = os.path.join(DATA, "link-lite", "phase1")
PROMPTS, SAMPLES, NEW = 16, 4, 104
STEPS, UNTIMED, TURNS = 8, 2, 2


def reward(text: str) -> float:
    """Costs nothing, and differs between responses."""
    return len(text) % 7 / 7


def ours(group: bool) -> list[float]:
    """Seconds of each step of `rldtf_jax.rldtf`."""
    import jax

    from experiments.stages.rldtf import value_model
    from experiments.world.environment import TwinEnvironment
    from rldtf_jax import hf, rldtf, tokenizer
    from rldtf_jax.config import RLDTFConfig, SampleConfig
    from rldtf_jax.judge import Arm, Verdict

    class Cheap(TwinEnvironment):
        def judge_text(self, tasks, texts, policy=None):
            R = np.array(list(map(reward, texts)), np.float32)
            return Verdict(R, R > 0.5, [None] * len(texts), {})

        def summary(self, tasks, responses, verdict, logp):
            return {}

    config = RLDTFConfig(
        steps=STEPS,
        prompts_per_step=PROMPTS,
        samples_per_prompt=SAMPLES,
        weight_by="grammar",
        num_perturb=1,
        alpha=0.0 if group else 4.0,
        advantage="group" if group else "paper",
        with_critic=not group,
        sample=SampleConfig(NEW),
    )
    policy, tok = hf.load(POLICY), tokenizer.load(os.path.join(POLICY, "tokenizer.json"))
    env = Cheap(load_splits(os.path.join(DATA, "link-lite"))["train"], tok, None, config.reward)
    models, state = rldtf.initial(policy, value_model(policy, 0), config, 0)
    states, seconds = (state,), []
    for step in range(STEPS):
        begun = time.perf_counter()
        states, _ = rldtf.rldtf_step(models, [Arm(config, 0, env)], states, step)
        jax.block_until_ready(states)
        seconds.append(time.perf_counter() - begun)
    return seconds


def trl() -> list[float]:
    """Seconds of each step of TRL's GRPOTrainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = shipped_policy()
    tasks = load_splits(os.path.join(DATA, "link-lite"))["train"]
    rows = [{"prompt": in_turns(task.prompt())} for task in tasks]
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            reward_funcs=lambda completions, **_: list(map(reward, completions)),
            args=GRPOConfig(
                directory,
                max_steps=STEPS,
                per_device_train_batch_size=PROMPTS * SAMPLES,
                num_generations=SAMPLES,
                max_completion_length=NEW,
                beta=0.04,
                learning_rate=3e-4,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
        )
        trainer.train()
    return [row["step_time"] for row in trainer.state.log_history if "step_time" in row]


def tunix(ppo: bool) -> list[float]:
    """Seconds of each step of Tunix's PPOLearner or GRPOLearner; of the first, from its start."""
    import jax
    import optax
    from flax import nnx
    from tunix.models.qwen2 import model as qwen2
    from tunix.models.qwen2.params import create_model_from_safe_tensors
    from tunix.rl import rl_cluster as clusters
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig
    from tunix.rl.utils import create_critic_model

    from rldtf_jax.qwen2 import Qwen2Config

    with open(os.path.join(POLICY, "config.json"), encoding="utf-8") as file:
        shape = Qwen2Config.from_hf(json.load(file))
    config = dict(
        num_layers=shape.num_hidden_layers,
        vocab_size=shape.vocab_size,
        embed_dim=shape.hidden_size,
        hidden_dim=shape.intermediate_size,
        num_heads=shape.num_attention_heads,
        head_dim=shape.head_dim,
        num_kv_heads=shape.num_key_value_heads,
        rope_theta=int(shape.rope_theta),
        norm_eps=shape.rms_norm_eps,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def loaded():
        tied = qwen2.ModelConfig(**config, use_tied_embedding=True)
        return create_model_from_safe_tensors(POLICY, tied, mesh)

    _, tokenizer = shipped_policy()
    tasks = load_splits(os.path.join(DATA, "link-lite"))["train"]
    texts = [in_turns(task.prompt()) for task in tasks[: STEPS * PROMPTS]]
    each = SAMPLES if ppo else 1  # prompts that PPO samples once, GRPO SAMPLES times
    batches = [
        {"prompts": np.repeat(texts[i : i + PROMPTS], each)} for i in range(0, len(texts), PROMPTS)
    ]
    longest = max(len(tokenizer.encode(text)) for text in texts)
    optimizer = optax.adamw(3e-4)
    roles = (
        clusters.Role.ACTOR,
        clusters.Role.CRITIC,
        clusters.Role.REFERENCE,
        clusters.Role.ROLLOUT,
    )
    critic = None
    if ppo:  # its head takes the place of an untied one, its weights are fresh
        untied = qwen2.Qwen2(qwen2.ModelConfig(**config), rngs=nnx.Rngs(0))
        critic = create_critic_model(untied)
    cluster = clusters.RLCluster(
        actor=loaded(),
        critic=critic,
        reference=loaded(),
        tokenizer=tokenizer,
        cluster_config=clusters.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=clusters.RLTrainingConfig(
                actor_optimizer=optimizer,
                critic_optimizer=optimizer,
                eval_every_n_steps=10**6,
                max_steps=STEPS,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=NEW,
                max_prompt_length=longest,
                kv_cache_size=longest + NEW + 8,
                temperature=1.0,
            ),
        ),
    )
    learner = (
        PPOLearner(cluster, PPOConfig(), reward_fns=rewards)
        if ppo
        else GRPOLearner(
            rl_cluster=cluster, algo_config=GRPOConfig(num_generations=SAMPLES), reward_fns=rewards
        )
    )
    ends = [time.perf_counter()]

    def asked():
        """The batches; each is asked for when the step before it is done."""
        for batch in batches:
            yield batch
            ends.append(time.perf_counter())

    with mesh:
        learner.train(asked())
    return np.diff(ends).tolist()


def rewards(prompts, completions, **_) -> list[float]:
    return list(map(reward, completions))


CONTENDERS = {
    "rldtf": lambda: ours(group=False),
    "group": lambda: ours(group=True),
    "trl": trl,
    "tunix-ppo": lambda: tunix(ppo=True),
    "tunix-grpo": lambda: tunix(ppo=False),
}


def turn(contender: str) -> list[float]:
    """A turn in a process of its own: the seconds of its timed steps."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.peers", "--contender", contender],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])[UNTIMED:]


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contender", choices=CONTENDERS, help="this one alone, in this process")
    parser.add_argument("--out", help="also write the figures there")
    arguments = parser.parse_args(argv)
    if arguments.contender:
        print(json.dumps(CONTENDERS[arguments.contender]()))
        return
    import trl as library

    seconds = {name: [] for name in CONTENDERS}
    for _ in range(TURNS):
        for name in CONTENDERS:
            seconds[name] += turn(name)
            print(f"{name}: {np.mean(seconds[name]):.2f} s a step", file=sys.stderr, flush=True)
    result = {
        "processor": processor(),
        "trl": library.__version__,
        "tunix": importlib.metadata.version("google-tunix"),
        "steps": TURNS * (STEPS - UNTIMED),
        "responses": PROMPTS * SAMPLES,
        "seconds a step": {
            name: {"mean": float(np.mean(s)), "interval": mean_interval(np.array(s))}
            for name, s in seconds.items()  # type: ignore[attr-defined]
        },
        "trl / rldtf": float(np.mean(seconds["trl"]) / np.mean(seconds["rldtf"])),
    }
    show(result, arguments.out)


if __name__ == "__main__":
    main()
