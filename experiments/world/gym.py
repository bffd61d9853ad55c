"""The judge as a Gymnasium environment: one prompt, one response, its reward."""

import string
from collections.abc import Sequence
from typing import Any

import gymnasium

from experiments.world.scoring import judge
from experiments.world.tasks import Task
from rldtf_jax.reward import RewardConfig
from twin import Twin

MAX_RESPONSE = 4096  # characters


class TwinEnv(gymnasium.Env):
    """Episodes of one step. The observation is a task's prompt, the action a response in words; the
    reward is Eq. 2.

    `reset` draws a task, or takes the one of options={"index": i}; its info is {"index": i}, so
    that an agent that does not read finds the task in `tasks`. The info of `step` is {"index",
    "qos": twin.QoS or None, "fulfilled", "failure": None or why nothing was simulated}, and its
    observation the same prompt. Characters beyond the action space are judged like all others.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        tasks: Sequence[Task],
        twin: Twin,
        config: RewardConfig = RewardConfig(),
        form: str = "short",
    ):
        """twin: stays the caller's to close. form: of the prompts, see Task.prompt.

        Raises:
          ValueError: there is no task.
        """
        if not tasks:
            raise ValueError("tasks: expected at least one")
        self.tasks, self.twin, self.config = list(tasks), twin, config
        self.prompts = [task.prompt(form) for task in self.tasks]
        self.observation_space = gymnasium.spaces.Text(
            max(map(len, self.prompts)), charset=frozenset().union(*self.prompts)
        )
        self.action_space = gymnasium.spaces.Text(
            MAX_RESPONSE, min_length=0, charset=string.printable
        )
        self._index: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self.tasks)))
        self._index = (options or {}).get("index", drawn)
        return self.prompts[self._index], {"index": self._index}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._index is None:
            raise gymnasium.error.ResetNeeded("an episode is one step: expected reset() before it")
        index, self._index = self._index, None
        (one,) = judge([self.tasks[index]], [action], self.twin, self.config)
        info = {"index": index, "qos": one.qos, "fulfilled": one.fulfilled, "failure": one.failure}
        return self.prompts[index], one.R, True, False, info
