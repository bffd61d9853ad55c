"""The twin as a reward function of TRL's GRPOTrainer, called here as the trainer would call it.

    python examples/trl_reward.py
"""

import importlib.util
import itertools
import random

from experiments.world import worlds
from experiments.world.tasks import random_workflow
from experiments.world.trl_reward import TwinReward, dataset_rows


def trainer(reward, rows):
    """What a training begins with; `trainer(...).train()` runs it."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", reward_funcs=reward,
                       args=GRPOConfig("runs/grpo", num_generations=8),
                       train_dataset=Dataset.from_list(rows))


def main():
    tasks = list(itertools.islice(worlds.candidates(worlds.family("link-native"), 0), 4))
    rows = dataset_rows(tasks)  # columns: prompt, task
    rng = random.Random(0)
    completions = [task.response(random_workflow(rng, task.scenario)) for task in tasks]
    completions[-1] = "I would use QPSK."
    reward = TwinReward(workers=1, max_blocks=32)
    batch = {key: [row[key] for row in rows] for key in rows[0]}
    values = reward(prompts=batch.pop("prompt"), completions=completions, **batch)
    for value, completion in zip(values, completions):
        print(f"R {value:6.3f}  {completion}")
    chat = [[{"role": "assistant", "content": completion}] for completion in completions]
    assert values == reward(prompts=None, completions=chat, **batch)
    reward.close()
    if importlib.util.find_spec("trl"):
        print("trl is here: trainer(TwinReward(), rows).train() would train on these rows")
    else:
        print("trl is not installed; with it, trainer() of this file makes the GRPOTrainer")


if __name__ == "__main__":
    main()
