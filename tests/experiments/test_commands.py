"""Every command refuses what it does not know in words, with exit status 2 and no traceback."""

import ast
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config import PROJECT, guarded, load
from experiments.files import json_lines
from experiments.stages import machine
from experiments.stages.run import opened
from rldtf_jax.config import ConfigError

ROOT = PROJECT


def commands():
    """The modules that people run by `python -m`; the twin starts its workers itself."""
    for package in ("experiments", "twin", "rldtf_jax"):
        for directory, _, files in sorted(os.walk(os.path.join(ROOT, package))):
            for name in sorted(files):
                if name.endswith(".py") and name != "worker.py":
                    with open(path := os.path.join(directory, name), encoding="utf-8") as file:
                        tree = ast.parse(file.read())
                    if any(
                        isinstance(node, ast.If) and "__main__" in ast.dump(node.test)
                        for node in tree.body
                    ):
                        yield (
                            os.path.relpath(path, ROOT)[:-3]
                            .replace(os.sep, ".")
                            .removesuffix(".__main__")
                        )


def run(module, *arguments):
    """(exit status, stdout, stderr) of `python -m module arguments` in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [module, *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module(module, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


def test_the_commands_of_the_readme_are_among_those_walked_here():
    found = set(commands())
    assert {
        "experiments.stages.pipeline",
        "experiments.world",
        "twin",
        "rldtf_jax.fetch",
    } <= found and len(found) >= 28


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", commands())
def test_a_command_refuses_what_it_does_not_know(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in ("nonsense", "nonsense=1", "--nonsense"):
        status, out, err = run(module, argument)
        assert status == 2 and out == "" and "Traceback" not in err, (argument, status, err)
        last = err.splitlines()[-1]
        assert "error: " in last and ("nonsense" in last or "required" in last)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        guarded(lambda: open("/dev/full", "w", buffering=1).write("line\n"))
    assert (
        end.value.code == 2
        and capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    )


@settings(deadline=None, max_examples=15)
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
        lambda s: s.strip() and s != "null"
    )
)
def test_a_path_is_taken_as_it_stands(path):
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = "x" + path
    config = load(["preset=smoke", f"run_dir={path}", f"twin.cache={path}/c"])
    assert (config.run_dir, config.twin.cache) == (path, f"{path}/c")


@pytest.mark.parametrize(
    "path",
    [
        "a=b",
        "a,b",
        "it's",
        'say "hi"',
        "#1",
        "${home}",
        "網/路",
        "[x",
        "{a: 1}",
        " a ",
        "true",
        "1e3",
    ],
)
def test_paths_that_a_grammar_would_stumble_over(path):
    assert load(["preset=smoke", f"run_dir={path}"]).run_dir == path


def test_quoted_text_null_and_the_last_of_a_key():
    config = load(
        ["preset=hour", "preset=smoke", "run_dir='a b'", "twin.cache=null", "seed=1", "seed=2"]
    )
    assert (config.run_dir, config.twin.cache, config.seed, config.rldtf.steps) == (
        "a b",
        None,
        2,
        2,
    )


@pytest.mark.parametrize(
    "preset, devices",
    [("smollm2-135m", 1), ("qwen2.5-0.5b", 1), ("qwen2.5-1.5b", 1), ("qwen2.5-7b", 16)],
)
def test_presets_of_pretrained_models_say_what_a_pretrained_model_needs(preset, devices, tmp_path):
    with pytest.raises(ConfigError, match="hf_dir"):
        load([f"preset={preset}"])
    config = load([f"preset={preset}", f"model.hf_dir={tmp_path}"])
    assert (config.model.dtype, config.model.remat, config.tasks.prompt, config.run_dir) == (
        "bfloat16",
        True,
        "long",
        f"runs/{preset}",
    )
    # a tiny model from nothing takes 3e-3
    assert (
        0
        < config.rldtf.policy.lr
        <= config.reject.sft.optim.lr
        < config.instruct.sft.optim.lr
        <= 5e-4
    )
    assert config.rldtf.sample.max_new_tokens >= 150 and config.mesh.fsdp == devices
    rows = config.rldtf.prompts_per_step // config.rldtf.microbatches
    assert all(
        n % devices == 0
        for n in (
            rows,
            config.instruct.sft.batch_size,
            config.reject.sft.batch_size,
            config.evaluate.batch_size,
        )
    )


@pytest.mark.parametrize(
    "argument, message",
    [
        ("run_dir=", "run_dir = '': expected a directory's name"),
        ("tasks=3 ", "tasks = 3: expected a group of keys"),
        ("tasks.directory=no/such", "directory = 'no/such': no such directory"),
    ],
)
def test_wrong_text_is_one_line(argument, message):
    with pytest.raises(ConfigError, match=message):
        load(["preset=smoke", argument])


def test_a_directory_goes_on_only_with_the_tasks_and_tokenizer_that_it_was_made_with(tmp_path):
    from experiments.world.tasks import DATA

    mine = tmp_path / "mine"
    mine.mkdir()
    for split in ("train", "validation", "test"):
        with open(os.path.join(DATA, "link-lite", f"{split}.jsonl"), encoding="utf-8") as file:
            lines = file.readlines()[:6]
        (mine / f"{split}.jsonl").write_text("".join(lines))
    config = load(["preset=smoke", f"run_dir={tmp_path}/run", f"tasks.directory={mine}"])
    for _ in range(2):
        with opened(config, start_twin=False) as run_:
            assert len(run_.tasks["train"]) == 6
    (mine / "train.jsonl").write_text(
        "".join(reversed((mine / "train.jsonl").read_text().splitlines(True)))
    )
    with pytest.raises(
        ConfigError,
        match=(
            r"made_from.json: tasks/train = [0-9a-f]{12}: expected [0-9a-f]{12}, of which the"
            r" directory was made"
        ),
    ):
        with opened(config, start_twin=False):
            pass


def test_a_run_directory_notes_each_machine_once(tmp_path, monkeypatch):
    path = str(tmp_path / "machines.jsonl")
    for _ in range(2):
        machine.note(path)
    monkeypatch.setattr(machine, "processor", lambda: "another, 2 cores")
    machine.note(path)
    (one, other), here = json_lines(path), machine.machine()
    assert one["numerics"] == other["numerics"] == here["numerics"] and re.fullmatch(
        "[0-9a-f]{8}", here["numerics"]
    )
    assert other == here and one["processor"] != other["processor"]


def test_two_commands_do_not_work_in_one_directory(tmp_path):
    config = load(["preset=smoke", f"run_dir={tmp_path}"])
    expected = "run_dir = '.*': expected a directory that no other command is at work in"
    with opened(config, start_twin=False):
        status, _, err = run("experiments.stages.instruct", "preset=smoke", f"run_dir={tmp_path}")
        assert status == 2 and re.fullmatch(f"error: {expected}\n", err)
    with (
        opened(config, start_twin=False, shared=True),
        opened(config, start_twin=False, shared=True),
    ):
        with pytest.raises(ConfigError, match=expected), opened(config, start_twin=False):
            pass


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "{", "expected JSON"),
        ("config.json", '{"model_type": "gpt2"}', "model_type 'gpt2' is not supported"),
        ("config.json", None, "rope scaling of type 'yarn' is not supported"),
        ("model.safetensors", "x" * 40, "the header"),
        ("tokenizer.json", "[]", "tokenizer.json"),
    ],
)
def test_a_model_that_cannot_be_read_is_one_line(
    name, content, message, tmp_path, capsys, monkeypatch
):
    from experiments.stages.pretrain import first_model
    from experiments.world.tasks import DATA

    shutil.copytree(os.path.join(DATA, "link-lite", "phase1"), tmp_path / "model")
    path = tmp_path / "model" / name
    if content is None:
        content = json.dumps(
            json.loads(path.read_text()) | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
        )
    path.write_text(content)
    config = load(
        ["preset=quickstart", f"run_dir={tmp_path}/run", f"model.hf_dir={tmp_path}/model"]
    )

    def command():
        with opened(config, start_twin=False) as run_:
            first_model(run_)

    with pytest.raises(SystemExit) as end:
        guarded(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: model.hf_dir = ") and message in line
