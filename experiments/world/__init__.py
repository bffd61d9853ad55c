"""The world: tasks and their wording, the orchestration language, the judge, the baselines."""
