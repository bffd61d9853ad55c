"""Two agents on the link world as a Gymnasium environment, 20 episodes each: one that writes valid
workflows at random, and link adaptation by rule. Needs `pip install gymnasium`.

    python examples/gymnasium_agent.py [FILE of tasks]
"""

import itertools
import random
import statistics
import sys

from experiments.world import worlds
from experiments.world.baselines import rule
from experiments.world.gym import TwinEnv
from experiments.world.reading import read_tasks
from experiments.world.tasks import random_workflow
from twin import Twin

EPISODES = 20


def random_agent(task, rng=random.Random(0)):
    return task.response(random_workflow(rng, task.scenario))


def rule_agent(task):
    workflow = rule(task, margin_db=24, per_decade_db=1.5, line_db=2)
    return task.response(workflow) if workflow else ""


def main(paths):
    if paths:
        tasks = read_tasks(paths[0])
    else:  # not known to be feasible: `python -m experiments.world make` draws tasks that are
        tasks = list(itertools.islice(worlds.candidates(worlds.family("link-native"), 0), EPISODES))
    seed = worlds.noise_seed(0, "evaluate")
    with Twin(workers=1, seed=seed, method="esm", max_blocks=32) as twin:
        for agent in (random_agent, rule_agent):
            env = TwinEnv(tasks, twin)
            rewards, met = [], []
            for episode in range(EPISODES):
                prompt, info = env.reset(seed=episode)
                if agent is random_agent and episode == 0:
                    print(f"a prompt: {prompt}\n")
                _, R, *_, info = env.step(agent(env.tasks[info["index"]]))
                rewards.append(R)
                met.append(info["fulfilled"])
            print(
                f"{agent.__name__:12}  mean R {statistics.mean(rewards):6.3f}, "
                f"{sum(met)} of {EPISODES} fulfilled"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
