"""The judge as a reward function in the form that TRL's GRPOTrainer takes."""

import json
import os
from collections.abc import Sequence
from typing import Any

from experiments.world.reading import parse_line, to_task
from experiments.world.scoring import judge
from experiments.world.tasks import DATA, Task, to_dict
from experiments.world.worlds import noise_seed
from rldtf_jax.reward import RewardConfig
from twin import Twin


def dataset_rows(tasks: Sequence[Task], form: str = "short") -> list[dict[str, str]]:
    """Rows for `datasets.Dataset.from_list`: the prompt (see Task.prompt), and the task as JSON."""
    return [{"prompt": task.prompt(form), "task": json.dumps(to_dict(task))} for task in tasks]


def shipped_policy() -> tuple[Any, Any]:
    """(model, tokenizer) of transformers: the policy that comes with the project after phase 1."""
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    path = os.path.join(DATA, "link-lite", "phase1")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(path, "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    return Qwen2ForCausalLM.from_pretrained(path, dtype="float32"), tokenizer


def in_turns(prompt: str) -> str:
    """A prompt as the turns that this policy knows; its tokenizer has no chat template."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


class TwinReward:
    """GRPOTrainer(reward_funcs=TwinReward(), ...): Eq. 2 of what the twin measures.

    It starts its twin when it is first called, in the process that calls it. A pickled copy starts
    its own.
    """

    def __init__(
        self,
        config: RewardConfig = RewardConfig(),
        seed: int = 0,
        workers: int = 2,
        cache: str | None = None,
        max_blocks: int = 128,
    ):
        """seed: of the run; the noise is that of training, see `worlds.noise_seed`. workers, cache,
        max_blocks: of the Twin."""
        self.__name__ = "twin_reward"  # the name under which TRL logs it
        self.config = config
        self._settings = dict(
            workers=workers,
            cache=cache,
            seed=noise_seed(seed, "train"),
            method="esm",
            max_blocks=max_blocks,
        )
        self._twin: Twin | None = None

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        task: Sequence[str],
        **columns: Any,
    ) -> list[float]:
        """Rewards of B completions.

        Args:
          prompts: not read.
          completions: B texts, or B lists of messages {"role", "content"}; the last one is read.
          task: B tasks as JSON, see `dataset_rows`.
          columns: whatever else the trainer passes; not read.

        Raises:
          ConfigError: a column that holds no task.
        """
        if self._twin is None:
            self._twin = Twin(**self._settings)
        texts = [one if isinstance(one, str) else one[-1]["content"] or "" for one in completions]
        known = {text: to_task(parse_line(text)) for text in dict.fromkeys(task)}
        judgements = judge([known[text] for text in task], texts, self._twin, self.config)
        return [one.R for one in judgements]

    def close(self) -> None:
        """Stops the twin; the next call starts it anew."""
        if self._twin is not None:
            self._twin.close()
            self._twin = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_twin": None}
