"""Scoring one's own answers: a task file and an answer file in, a table out. The scorer is the
command `python -m experiments.world score tasks=FILE answers=FILE`; it needs no JAX.

    python examples/score_answers.py
"""

import dataclasses
import itertools
import json
import os
import random
import sys
import tempfile

from experiments.world import __main__ as command
from experiments.world import worlds
from experiments.world.baselines import sturdiest
from experiments.world.reading import task_id, write_lines
from experiments.world.tasks import random_workflow, to_dict


def main():
    tasks = list(itertools.islice(worlds.candidates(worlds.family("link-native"), 0), 8))
    rng, answers = random.Random(0), []
    for i, task in enumerate(tasks):
        workflow = sturdiest(task) or random_workflow(rng, task.scenario)
        if i % 2:  # an answer is a workflow, or a text that says one; a task is an index or an id
            answers.append({"task": i, "workflow": dataclasses.asdict(workflow)})
        else:
            answers.append({"task": task_id(task), "text": task.response(workflow)})
    with tempfile.TemporaryDirectory() as directory:
        tasks_path, answers_path, out = (
            os.path.join(directory, name) for name in ("tasks.jsonl", "answers.jsonl", "out.json")
        )
        write_lines(map(to_dict, tasks), tasks_path)
        write_lines(answers[:-1], answers_path)  # what is left out counts as unusable
        print(f"an answer: {json.dumps(answers[0])}\n")
        words = [f"tasks={tasks_path}", f"answers={answers_path}", f"out={out}", "workers=1"]
        status = command.main(["score", *words])
        with open(out) as file:
            print(f"\nits first judgement: {json.load(file)['answers'][0]}")
    return status


if __name__ == "__main__":
    sys.exit(main())
