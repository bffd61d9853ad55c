"""The network world behind `rldtf_jax.rldtf.Environment`: the learning side takes it as it is."""

import dataclasses
from typing import Sequence

import numpy as np

from experiments.network import tasks as world
from experiments.network import tools
from experiments.network.memory import Memory
from experiments.network.ranking import Ranking
from experiments.network.tasks import Task
from experiments.network.tools import TOOLS
from rldtf_jax.judge import Imagined, Policy, Verdict
from rldtf_jax.sample import bucket, pad_prompts
from rldtf_jax.sft import batch_rows
from rldtf_jax.token_weight import Field
from rldtf_jax.tokenizer import Tokenizer

ENOUGH = 0.99  # of the best level that is known: the request is fulfilled


@dataclasses.dataclass(frozen=True)
class View:
    """What stands in a prompt beside the request.

    ranking: shows the cards most like the request, and no other tool may be called; without one all
      tools are named, which takes about as many tokens. memory: shows the nearest earlier call.
    figures: nothing is shown but all figures, to be answered in figures.
    """

    ranking: Ranking | None = None
    memory: Memory | None = None
    figures: bool = False

    def shown(self, task: Task) -> list[str]:
        """The tools that may be called."""
        some = TOOLS if self.ranking is None else self.ranking(task.prompt, task.figures)
        return [] if self.figures else [tool.name for tool in some]

    def prompt(self, task: Task) -> str:
        if self.figures:
            return task.request
        some = [tools.BY_NAME[name] for name in self.shown(task)]
        cards = [
            f"{tool.name}({', '.join(tool.arguments)})" if self.ranking is None else tool.brief()
            for tool in some
        ]
        text = f"{task.prompt} Tools: {' '.join(cards)}"
        for one in self.memory.nearest(task.request) if self.memory is not None else ():
            text += f" Earlier {one.call} earned {one.reward:.2f}."
        return text


class NetworkEnvironment:
    """Requests in, verdicts out; a response is the text of a call or a plan (`tools.carry_out`)."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        seed: int = 0,
        view: View = View(),
        run: tools.Run = tools.directly,
    ):
        """run: what carries calls out, such as a `worker.Worker`."""
        self.tasks, self.tokenizer, self.seed, self.run = list(tasks), tokenizer, seed, run
        self.eos_id = tokenizer.eos_id
        self.prompts = [tokenizer.apply_chat(view.prompt(task)) for task in self.tasks]
        self.shown = {task.request: view.shown(task) for task in self.tasks}
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
        verdicts = self.verdicts(tasks, list(map(self.text, responses)))
        return Verdict(
            np.array([one.reward for one in verdicts], np.float32),
            np.array([one.share >= ENOUGH for one in verdicts], bool),
            [one.failure for one in verdicts],
            {"sequences": len(verdicts), "distinct": len(set(map(id, verdicts)))},
            costs={"tools": np.array([one.cost for one in verdicts], np.float32)},
        )

    def verdicts(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[world.Verdict]:
        """Each different answer is carried out once, and not again where it was asked last."""
        asked = list(zip(tasks, texts))
        self._judged = {
            (task.request, text): self._judged.get((task.request, text))
            or world.judge(task, text, self.shown[task.request], self.run)
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
        """What the coordinator's steps are worth, each apart, see `parts`."""
        found = self.verdicts(tasks, list(map(self.text, responses)))
        return {f"calls/{name}": value for name, value in parts(tasks, found).items()}

    def imagine(
        self,
        tasks: Sequence[Task],
        responses: Sequence[np.ndarray],
        num_tokens: int,
        verdict: Verdict,
    ) -> Imagined:
        raise NotImplementedError("advantage = 'expected' needs a model of the judge")


def parts(tasks: Sequence[Task], verdicts: Sequence[world.Verdict]) -> dict[str, float]:
    """Shares of the answers that can be carried out, whose steps are of the kinds that the request
    takes ("plan"), that name the right tools ("selected") and give them the right arguments
    ("arguments", of those); the mean number of calls and their cost.
    """
    right = [world.right_steps(task) for task in tasks]
    selected = [
        [step.tool.name for step in one.steps] == [name for name, _ in steps]
        for one, steps in zip(verdicts, right)
    ]
    alike = [
        all(same(step.arguments, arguments) for step, (_, arguments) in zip(one.steps, steps))
        for one, steps, chosen in zip(verdicts, right, selected)
        if chosen
    ]
    return {
        "carried_out": float(np.mean([one.failure is None for one in verdicts])),
        "plan": float(
            np.mean(
                [
                    one.kinds == tuple(tools.BY_NAME[name].kind for name, _ in steps)
                    for one, steps in zip(verdicts, right)
                ]
            )
        ),
        "selected": float(np.mean(selected)),
        "arguments": float(np.mean(alike)) if alike else 0.0,
        "number": float(np.mean([len(one.steps) for one in verdicts])),
        "cost": float(np.mean([one.cost for one in verdicts])),
    }


def same(one: dict, other: dict) -> bool:
    """Whether arguments are the same but for rounding; "inf" and null are themselves."""
    return one.keys() == other.keys() and all(
        one[name] == value
        if isinstance(value, str) or value is None or isinstance(one[name], str)
        else one[name] is not None
        and np.shape(one[name]) == np.shape(value)
        and np.allclose(one[name], value, rtol=1e-6)
        for name, value in other.items()
    )
