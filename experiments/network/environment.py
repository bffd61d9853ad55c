"""The network world behind `rldtf_jax.rldtf.Environment`: the learning side takes it as it is."""

import json
from typing import Sequence

import numpy as np

from experiments.network import tasks as world
from experiments.network.tasks import Task
from rldtf_jax.judge import Imagined, Policy, Verdict
from rldtf_jax.sample import bucket, pad_prompts
from rldtf_jax.sft import batch_rows
from rldtf_jax.token_weight import Field
from rldtf_jax.tokenizer import Tokenizer

ENOUGH = 0.99  # of the best level that is known: the request is fulfilled


class NetworkEnvironment:
    """Requests in, verdicts out; a response is the text of a call (`tools.call`)."""

    def __init__(self, tasks: Sequence[Task], tokenizer: Tokenizer, seed: int = 0):
        self.tasks, self.tokenizer, self.seed = list(tasks), tokenizer, seed
        self.eos_id = tokenizer.eos_id
        self.prompts = [tokenizer.apply_chat(task.prompt) for task in self.tasks]
        self.width = bucket(max(map(len, self.prompts)))
        # of what was asked last, by request and answer
        self._judged: dict[tuple[str, str], world.Verdict] = {}

    def batch(self, step: int, num_prompts: int) -> tuple[list[Task], np.ndarray, np.ndarray]:
        """(tasks, prompts_BxP, lengths_B) of a step: epochs of a fresh permutation each."""
        rows = batch_rows(self.seed, step, num_prompts, len(self.tasks))
        return [self.tasks[i] for i in rows], *pad_prompts(
            [self.prompts[i] for i in rows], self.width
        )

    def text(self, response: np.ndarray) -> str:
        """Of a response's ids, up to its first EOS."""
        ids = np.asarray(response).tolist()
        return self.tokenizer.decode(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids)

    def judge(
        self, tasks: Sequence[Task], responses: Sequence[np.ndarray], policy: Policy | None = None
    ) -> Verdict:
        verdicts = self._verdicts(tasks, responses)
        return Verdict(
            np.array([one.reward for one in verdicts], np.float32),
            np.array([one.share >= ENOUGH for one in verdicts], bool),
            [one.failure for one in verdicts],
            {"sequences": len(verdicts), "distinct": len(set(map(id, verdicts)))},
            costs={"tools": np.array([one.cost for one in verdicts], np.float32)},
        )

    def _verdicts(
        self, tasks: Sequence[Task], responses: Sequence[np.ndarray]
    ) -> list[world.Verdict]:
        """Each different answer is carried out once, and not again where it was asked last."""
        asked = list(zip(tasks, map(self.text, responses)))
        self._judged = {
            (task.request, text): self._judged.get((task.request, text)) or world.judge(task, text)
            for task, text in dict.fromkeys(asked)
        }
        return [self._judged[task.request, text] for task, text in asked]

    def fields(self, tasks: Sequence[Task], responses: Sequence[np.ndarray]) -> list[list[Field]]:
        """None: a call is read as a whole."""
        return [[] for _ in responses]

    def summary(
        self,
        tasks: Sequence[Task],
        responses: Sequence[np.ndarray],
        verdict: Verdict,
        logp: Sequence[np.ndarray],
    ) -> dict[str, float]:
        """Shares of calls that can be carried out, that name a tool of the problem's kind, and the
        mean cost of the tools that ran.
        """
        found = self._verdicts(tasks, responses)
        costs = [one.cost for one in found if one.kind]
        return {
            "calls/carried_out": float(np.mean([failure is None for failure in verdict.failure_M])),
            "calls/right_kind": float(
                np.mean([one.kind == task.problem.kind for task, one in zip(tasks, found)])
            ),
            "calls/cost": float(np.mean(costs)) if costs else 0.0,
        }

    def imagine(
        self,
        tasks: Sequence[Task],
        responses: Sequence[np.ndarray],
        num_tokens: int,
        verdict: Verdict,
    ) -> Imagined:
        raise NotImplementedError("advantage = 'expected' needs a model of the judge")


def by_reference(name: str, arguments: dict) -> str:
    """The text of a call."""
    return json.dumps({"tool": name, "arguments": arguments})
