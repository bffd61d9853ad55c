"""The twin as the reward of TRL's GRPOTrainer, training the policy that ships after phase 1. Needs
the extra `trl`.

    python examples/trl_reward.py [steps]
"""

import itertools
import os
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from experiments.world import worlds
from experiments.world.tasks import DATA
from experiments.world.trl_reward import TwinReward, dataset_rows

POLICY = os.path.join(DATA, "link-lite", "phase1")
PROMPTS, SAMPLES = 4, 4  # of a step


def main(steps: int = 2) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(POLICY, "tokenizer.json"), eos_token="<|im_end|>",
        pad_token="<|endoftext|>", padding_side="left")
    family = worlds.family("link-lite")
    tasks = list(itertools.islice(worlds.candidates(family, 0), PROMPTS * steps))
    rows = dataset_rows(tasks)
    for row in rows:  # TRL would take a chat template; these are the turns that the policy knows
        row["prompt"] = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    reward = TwinReward()
    trainer = GRPOTrainer(
        Qwen2ForCausalLM.from_pretrained(POLICY, dtype=torch.float32), processing_class=tokenizer,
        reward_funcs=reward, train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES, max_completion_length=104, learning_rate=3e-4, logging_steps=1,
            report_to="none", save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True))
    trainer.train()
    reward.close()
    for line in trainer.state.log_history:
        if "reward" in line:
            print(f"step {line['step']}: mean R {line['reward']:.3f} of {PROMPTS * SAMPLES} responses of "
                  f"{line['completions/mean_length']:.0f} tokens, {line['step_time']:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
