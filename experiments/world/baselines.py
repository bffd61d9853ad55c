"""What a policy is compared with: methods that ask no twin, and the same with a few twin calls. The
oracle is `search`.

Each is a function of a task (and what was tuned on other tasks) to a workflow, or None where it
finds nothing to try.
"""

import functools
import itertools
import math
import random
from typing import Callable, Sequence

import numpy as np

from experiments.world.search import headroom_db, judged, limit, modes, runs, search
from experiments.world.tasks import Task, random_workflow
from rldtf_jax.reward import NO_SERVICE, RewardConfig
from twin import Twin, Workflow
from twin.delay import delay_ms, harq_round_trip_ms

MARGINS_DB = (*range(-6, 25, 3), 32, 48, 96)  # dB; the last is the sturdiest
PER_DECADE_DB = (0.0, 1.5, 3.0)
LINE_DB = (0.0, 2.0, 4.0)
CONSTANT_TASKS = 200  # of training, for which the best constant is chosen
NAMES = {
    "random": "random valid",
    "constant": "best constant",
    "sturdiest": "sturdiest mode",
    "rule": "rule, tuned",
    "rule_2": "rule, feedback of one try",
    "rule_4": "rule, 4 twin calls",
    "oracle": "oracle (search)",
}


def surely_in_time(task: Task, workflow: Workflow) -> bool:
    """Whether even the last transmission is in time."""
    w = workflow
    last_ms = delay_ms(task.scenario, w) + (w.num_transmissions - 1) * (
        harq_round_trip_ms(task.scenario, w) if w.num_transmissions > 1 else 0.0
    )
    return last_ms <= task.delay_ms


@functools.lru_cache(maxsize=1 << 9)
def prospects(task: Task) -> tuple[tuple[float, Workflow], ...]:
    """(headroom in dB, workflow): the modes that are in time for sure, each with the platform's
    strongest receiver.
    """
    return tuple(
        (headroom_db(task, w) + _pilots_db(task, w), w)
        for w in modes(task)
        if surely_in_time(task, w)
    )


def _pilots_db(task: Task, workflow: Workflow) -> float:
    """What a second DM-RS symbol is worth where the channel moves, by the textbook's rule."""
    return 3.0 if workflow.num_dmrs == 2 and task.scenario.speed_mps > 5 else 0.0


def sturdiest(task: Task) -> Workflow | None:
    """The mode with the most headroom over what it takes in AWGN."""
    return max(prospects(task), key=lambda pair: pair[0], default=(0, None))[1]


def rule(
    task: Task,
    margin_db: float,
    per_decade_db: float,
    line_db: float,
    config: RewardConfig = RewardConfig(),
) -> Workflow | None:
    """Link adaptation as practised: of the modes whose headroom covers a margin for fading the one
    that Eq. 2 likes best, spare resource blocks spent on what still lacks; the sturdiest where none
    does.

    line_db is what any mode takes beyond its headroom in AWGN; a channel that fades takes margin_db
    more at an error rate of 10 % and per_decade_db for every decade below, shared by the receive
    antennas.
    """
    decades = max(0.0, -math.log10(task.ber) - 1)
    fades = task.scenario.channel != "awgn"
    needed_db = line_db + fades * (margin_db + per_decade_db * decades) / task.scenario.num_rx_ant
    enough = [w for headroom, w in prospects(task) if headroom >= needed_db]
    if not enough:
        return sturdiest(task)
    return max(enough, key=lambda w: limit(task, w, config))


def tuned_rule(
    validation: Sequence[Task], twin: Twin, config: RewardConfig = RewardConfig()
) -> Callable[..., Workflow | None]:
    """The rule with the margins that earn most on the validation tasks: task -> workflow."""
    options = list(itertools.product(MARGINS_DB, PER_DECADE_DB, LINE_DB))
    chosen = [[rule(task, *option, config) for task in validation] for option in options]
    distinct = list({(i, w) for workflows in chosen for i, w in enumerate(workflows)})
    R, _ = rewards([validation[i] for i, _ in distinct], [w for _, w in distinct], twin, config)
    earned = dict(zip(distinct, R))
    best = max(
        range(len(options)), key=lambda k: sum(earned[i, w] for i, w in enumerate(chosen[k]))
    )
    return functools.partial(
        rule, **dict(zip(("margin_db", "per_decade_db", "line_db"), options[best])), config=config
    )


def outer_loop(
    tasks: Sequence[Task], tuned: Callable, twin: Twin, config: RewardConfig, tries: int
) -> list[Workflow | None]:
    """The rule that asks the twin, one call a try for all tasks: after the rule's own choice the
    sturdiest where that failed, then, by bisection, what Eq. 2 likes best of the modes with more
    headroom than failed and less than was met. Keeps the best.
    """
    ladder = [sorted(prospects(task), key=lambda pair: pair[0]) for task in tasks]
    failed, met = [-math.inf] * len(tasks), [math.inf] * len(tasks)
    best: list[tuple[bool, float, Workflow | None]] = [(False, -math.inf, None)] * len(tasks)
    asked = {i: w for i, task in enumerate(tasks) if (w := tuned(task)) is not None}
    for _ in range(tries):
        headroom = {i: next(h for h, other in ladder[i] if other == w) for i, w in asked.items()}
        for (i, w), (R, good, _) in zip(
            asked.items(), judged([(tasks[i], w) for i, w in asked.items()], twin, config)
        ):
            best[i] = max(best[i], (good, R, w), key=lambda one: one[:2])
            if good:
                met[i] = min(met[i], headroom[i])
            else:
                failed[i] = max(failed[i], headroom[i])
        asked = {}
        for i, task in enumerate(tasks):
            between = [pair for pair in ladder[i] if failed[i] < pair[0] < met[i]]
            if between:
                middle = (
                    between[-1][0] if met[i] == math.inf else (between[0][0] + between[-1][0]) / 2
                )
                asked[i] = max(
                    (w for h, w in between if h >= middle), key=lambda w: limit(task, w, config)
                )  # noqa: B023
    return [w for _, _, w in best]


def best_constant(
    train: Sequence[Task], twin: Twin, config: RewardConfig, pool: int = 64, seed: int = 0
) -> Workflow:
    """The one workflow that earns most over the training tasks, of `pool` of their witnesses."""
    rng = random.Random(f"constant {seed}")
    known = list(dict.fromkeys(task.witness for task in train if task.witness))
    options = rng.sample(known, min(pool, len(known)))
    R, _ = rewards(list(train) * len(options), [w for w in options for _ in train], twin, config)
    return options[int(R.reshape(len(options), -1).mean(1).argmax())]


def methods(
    train: Sequence[Task],
    validation: Sequence[Task],
    twins: Callable[[str], Twin],
    config: RewardConfig,
    seed: int = 0,
) -> dict[str, Callable[[Sequence[Task]], list[Workflow | None]]]:
    """All that a policy is compared with: tasks -> workflows.

    What is tuned is tuned on validation tasks and the noise `select`, the constant chosen on
    training tasks, and twin calls meet the noise `train`; see worlds.NOISE for twins.
    """
    tuned = tuned_rule(validation, twins("select"), config)

    @functools.cache  # not before it is asked for: it takes thousands of simulations
    def constant():
        return best_constant(train[:CONSTANT_TASKS], twins("train"), config)

    def random_valid(tasks):
        rng = random.Random(f"random {seed}")
        return [random_workflow(rng, task.scenario) for task in tasks]

    def oracle(tasks):
        known = [task.witness for task in tasks]
        return (
            known
            if all(known)
            else [one.workflow for one in search(tasks, twins("search"), config)]
        )

    return {
        "random": random_valid,
        "constant": lambda tasks: [constant()] * len(tasks),
        "sturdiest": lambda tasks: list(map(sturdiest, tasks)),
        "rule": lambda tasks: list(map(tuned, tasks)),
        **{
            f"rule_{n}": functools.partial(
                outer_loop, tuned=tuned, twin=twins("train"), config=config, tries=n
            )
            for n in (2, 4)
        },
        "oracle": oracle,
    }


def rewards(
    tasks: Sequence[Task], workflows: Sequence[Workflow | None], twin: Twin, config: RewardConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(R, fulfilled) of one workflow a task; none, and what the platform cannot run, gets
    NO_SERVICE.
    """
    R, good = np.full(len(tasks), NO_SERVICE), np.zeros(len(tasks), bool)
    asked = [
        i
        for i, (task, w) in enumerate(zip(tasks, workflows))
        if w is not None and runs(task.scenario, w)
    ]
    for i, (value, met, _) in zip(
        asked, judged([(tasks[i], workflows[i]) for i in asked], twin, config)
    ):
        R[i], good[i] = value, met
    return R, good
