"""rldtf: every command of the project by its name.

rldtf                       what there is
rldtf COMMAND [...]         as python -m MODULE [...]
rldtf COMMAND --help        its arguments; of most a preset and key=value, with all keys and their defaults
rldtf completion            names of commands, presets and keys for bash: eval "$(rldtf completion)"
"""  # noqa: E501

import ast
import importlib.util
import os
import shlex
import sys

STAGES = (
    "pipeline",
    "pretrain",
    "instruct",
    "reject",
    "emulate",
    "rldtf",
    "evaluate",
    "report",
    "orchestrate",
)
STUDIES = ("ablate", "study", "seeds", "fresh", "sensitivity", "freedom", "paper", "emulator")
BENCHMARKS = ("plan", "step", "model_speed", "twin_speed", "ablate_speed", "gpu", "peers", "faults")
TRUTH = ("twin_truth", "conformance", "bler_tables")
COMMANDS = {
    name: f"experiments.{package}.{name}"
    for package, names in (
        ("stages", STAGES),
        ("studies", STUDIES),
        ("benchmarks", BENCHMARKS),
        ("truth", TRUTH),
    )
    for name in names
} | {
    "corpus": "experiments.corpus",
    "network": "experiments.network",
    "network_report": "experiments.network.report",
    "world": "experiments.world",
    "twin": "twin",
    "fetch": "rldtf_jax.fetch",
    "demo": "demo",
}


def about(module: str) -> str:
    """The first sentence of a module's docstring, which is not imported for it."""
    spec = importlib.util.find_spec(module)
    if spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    with open(spec.origin, encoding="utf-8") as file:
        return " ".join((ast.get_docstring(ast.parse(file.read())) or "").split("\n\n")[0].split())


def overview() -> str:
    return "\n".join(
        [
            __doc__.strip(),
            "",
            *(f"  {name:17} {about(module)}" for name, module in COMMANDS.items()),
        ]
    )


def completion() -> str:
    """A line of bash that completes commands, and behind them presets and keys."""
    from experiments.config import ExperimentConfig, presets
    from rldtf_jax.config import flat

    words = shlex.quote(
        " ".join(
            [
                *(f"preset={name}" for name in presets()),
                *(f"{key}=" for key in flat(ExperimentConfig())),
            ]
        )
    )
    return (
        f"_rldtf() {{ local words={words}; [ $COMP_CWORD = 1 ] &&"
        f" words={shlex.quote(' '.join(COMMANDS))}; local word=${{COMP_LINE:0:COMP_POINT}};"
        ' word=${word##* }; COMPREPLY=($(compgen -W "$words" -- "$word")); case $word in'
        ' *=*) COMPREPLY=("${COMPREPLY[@]#*=}");; esac; }; complete -o nospace -F _rldtf'
        " rldtf"
    )


def main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "completion":
        print(completion())
    elif name in COMMANDS:
        os.execv(sys.executable, [sys.executable, "-m", COMMANDS[name], *rest])
    else:
        print(
            f"error: {name!r}: no such command; expected one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
