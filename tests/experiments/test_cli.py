"""The commands by name, their help, completion in a real bash, and one request answered."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from running import LINK

from experiments import cli
from experiments.config import (
    PROJECT,
    ConfigError,
    ExperimentConfig,
    load,
    of_run,
    presets,
    save,
    usage,
)
from experiments.stages import orchestrate
from experiments.world.orchestration import read
from experiments.world.wording import read_intent
from rldtf_jax.config import flat

PHASE_1 = os.path.join(PROJECT, "experiments", "world", "data", "link-lite", "phase1")


def cli_in_a_process(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_command_is_there_with_a_sentence_about_it():
    for name, module in cli.COMMANDS.items():
        assert importlib.util.find_spec(module) and len(cli.about(module)) > 20, name
    assert all(f"  {name} " in cli.overview() for name in cli.COMMANDS)
    code, out, err = cli_in_a_process("nosuch")
    assert (
        code == 2
        and not out
        and err.startswith("error: 'nosuch': no such command; expected one of pipeline,")
        and len(err.splitlines()) == 1
    )
    code, out, _ = cli_in_a_process("twin", "toolbox")
    assert code == 0 and "modulate(" in out


def test_help_names_every_key_with_a_default_that_loads_as_it_is_printed():
    shown = dict(
        line.split()[0].split("=", 1)
        for line in usage("A command.").splitlines()
        if line.startswith("  ") and "=" in line.split()[0]
    )
    keys = flat(ExperimentConfig())
    groups = {name for name in shown if any(key.startswith(f"{name}.") for key in shown)}
    assert set(keys) <= set(shown) and groups == {"instruct.reading", "ask.sft"}
    defaults = {
        name: value
        for name, value in shown.items()
        if name not in groups
        and not name.startswith(("instruct.reading.", "ask.sft."))
        and "[" not in value
        and "(" not in value
        and value not in ("", "null")
    }
    assert len(defaults) > 60
    made = flat(
        load(
            [
                "preset=smoke",
                *(
                    f"{name}={value}"
                    for name, value in defaults.items()
                    if name != "rldtf.advantage"
                ),
            ]
        )
    )
    assert {name: made[name] for name in defaults if name != "rldtf.advantage"} == {
        name: keys[name] for name in defaults if name != "rldtf.advantage"
    }


def test_help_of_a_command_is_its_docstring_and_the_presets():
    code, out, _ = cli_in_a_process("reject", "--help")
    assert code == 0 and out.startswith("Rejection sampling") and "  rldtf.alpha=1.0" in out
    assert all(f"  {name} " in out for name in presets()) and len(presets()) >= 9


@pytest.mark.parametrize(
    "line, expected",
    [
        ("rldtf eva", ["evaluate"]),
        ("rldtf pipeline preset=smo", ["smoke", "smollm2-135m", "smollm2-135m-cpu"]),
        ("rldtf rldtf rldtf.alp", ["rldtf.alpha="]),
    ],
)
def test_bash_completes_commands_presets_and_keys(line, expected):
    script = f"""{cli.completion()}
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; words=($COMP_LINE); COMP_CWORD=$((${{#words[@]}} - 1)); _rldtf; printf '%s\\n' "${{COMPREPLY[@]}}" """  # noqa: E501
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == expected


@pytest.fixture
def asked(tmp_path):
    """(run directory, link file without targets, with them)."""
    save(
        load(["preset=quickstart", f"run_dir={tmp_path}/run"]),
        str(tmp_path / "run" / "config.yaml"),
    )
    paths = [str(tmp_path / name) for name in ("open.json", "stated.json")]
    for path, targets in zip(paths, ({}, {"delay_ms": 3, "throughput_mbps": 4, "ber": 0.1})):
        with open(path, "w") as file:
            json.dump({"scenario": LINK} | targets, file)
    return str(tmp_path / "run"), *paths


def test_a_request_is_answered_and_judged(asked, capsys):
    run, open_link, stated = asked
    words = (
        "A shopper compares prices in a browser with twenty tabs open. Make it work over the air."
        " Thank you."
    )
    orchestrate.main([words, "--link", open_link, "--run", run, "--model", PHASE_1, "--json"])
    found = json.loads(capsys.readouterr().out)
    workflow, failure = read(found["answer"])
    assert (
        failure is None
        and found["workflow"]["num_prb"] == workflow.num_prb
        and found["code"].startswith("grid(")
    )
    assert tuple(found["targets"].values()) == read_intent(found["answer"])  # what the model infers
    met = [found["measured"][name] <= found["targets"][name] for name in ("delay_ms", "ber")]
    met.append(found["measured"]["throughput_mbps"] >= found["targets"]["throughput_mbps"])
    assert (
        found["fulfilled"] == all(met) == all(found["met"].values()) and -1 <= found["reward"] <= 1
    )
    orchestrate.main([words, "--scenario", stated, "--run", run, "--model", PHASE_1])
    out = capsys.readouterr().out
    # what is written comes first, as it is written
    assert read(out.partition("\n\n")[0])[1] is None
    assert "at most 3 " in out and "at least 4 " in out and out.splitlines()[-1].startswith("R = ")


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "expected a JSON object with a scenario"),
        ("{", "expected JSON"),
        ('{"scenario": {}, "delay_ms": 1}', "throughput_mbps, ber: expected all"),
        (json.dumps({"scenario": LINK | {"snr_db": 1e9}}), "snr_db"),
        ("{}", "scenario"),
    ],
)
def test_a_wrong_link_file_is_named(asked, tmp_path, content, message):
    path = tmp_path / "link.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        orchestrate.main(["words", "--link", str(path), "--run", asked[0], "--model", PHASE_1])
    assert str(path) in str(error.value)


def test_a_run_without_a_model_or_a_config_is_named(asked, tmp_path):
    with pytest.raises(ConfigError, match="expected a run directory with a finished stage"):
        orchestrate.main(["words", "--link", asked[1], "--run", asked[0]])
    with pytest.raises(ConfigError, match="no such file; expected a run directory"):
        of_run(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="temperature"):
        orchestrate.main(["words", "--link", asked[1], "--run", asked[0], "--temperature", "-1"])
