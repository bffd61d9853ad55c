"""The twin as the reward of TRL's GRPOTrainer, training the policy that ships after phase 1. Needs
the extra `trl`.

    python examples/trl_reward.py [steps]
"""

import itertools
import sys
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from experiments.world import worlds
from experiments.world.trl_reward import TwinReward, dataset_rows, in_turns, shipped_policy

PROMPTS, SAMPLES = 4, 4  # of a step


def main(steps: int = 2) -> None:
    model, tokenizer = shipped_policy()
    family = worlds.family("link-lite")
    tasks = list(itertools.islice(worlds.candidates(family, 0), PROMPTS * steps))
    rows = dataset_rows(tasks)
    for row in rows:
        row["prompt"] = in_turns(row["prompt"])
    reward = TwinReward()
    trainer = GRPOTrainer(
        model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            tempfile.mkdtemp(),
            max_steps=steps,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=104,
            learning_rate=3e-4,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    reward.close()
    for line in trainer.state.log_history:
        if "reward" in line:
            print(
                f"step {line['step']}: mean R {line['reward']:.3f} of {PROMPTS * SAMPLES} responses"
                f" of {line['completions/mean_length']:.0f} tokens, {line['step_time']:.1f} s"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
