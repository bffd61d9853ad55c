"""The whole chain as a user runs it: real processes, the real twin, the smoke preset."""

import json
import os
import re
import shutil

import pytest
from running import finish, start

from experiments.config import load
from experiments.stages.evaluate import METHODS, MODELS, shaded_responses
from experiments.stages.run import opened


def test_the_run_ends_with_the_path_of_its_report(finished):
    run_dir, out = finished
    last = out.splitlines()[-1]
    assert last == f"report: {os.path.join(run_dir, 'report.html')}" and os.path.exists(
        last.removeprefix("report: ")
    )


def test_eight_devices_take_the_same_steps_as_one(finished, tmp_path):
    """From the same model after rejection sampling, on a mesh of 2 x 4: the same rollouts, losses
    and gradients.
    """
    run_dir = str(tmp_path / "mesh")
    shutil.copytree(finished[0], run_dir)
    shutil.rmtree(os.path.join(run_dir, "rldtf"))
    process = start(
        "preset=smoke",
        f"run_dir={run_dir}",
        "rldtf.steps=6",
        "mesh.data=2",
        "mesh.fsdp=4",
        module="experiments.stages.rldtf",
        env={"JAX_NUM_CPU_DEVICES": "8"},
    )
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    for step, (one, eight) in enumerate(
        zip(
            *(
                map(json.loads, open(os.path.join(directory, "rldtf", "metrics.jsonl")))
                for directory in (finished[0], run_dir)
            )
        )
    ):
        # from then on a token drawn otherwise, in a tie of the last bit, may part them
        if step < 2:
            assert one["reward"] == eight["reward"]
            for name in (
                "policy_loss",
                "value_loss",
                "reg_loss",
                "grad_norm",
                "critic_grad_norm",
                "entropy",
            ):
                assert eight[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (step, name)


@pytest.mark.parametrize("devices, words", [("8", "does not fit"), ("3", "does not divide")])
def test_a_mesh_that_does_not_fit_is_one_line(finished, devices, words):
    process = start(
        "preset=smoke",
        f"run_dir={finished[0]}",
        "rldtf.steps=6",
        "mesh.tensor=3",
        env={"JAX_NUM_CPU_DEVICES": devices},
    )
    _, err = process.communicate(timeout=300)
    assert (
        process.returncode == 2 and "mesh" in err.splitlines()[-1] and words in err.splitlines()[-1]
    )


def test_an_interrupted_run_has_every_step_once(finished):
    run_dir, _ = finished
    with open(os.path.join(run_dir, "rldtf", "metrics.jsonl")) as file:
        rows = list(map(json.loads, file))
    assert [row["step"] for row in rows] == list(range(6))
    for row in rows:  # every step of the smoke preset refreshes the reference
        assert 0 <= row["validation/pass@1"] <= row["validation/pass@2"] <= 1
        assert -1 <= row["validation/reward"] <= row["validation/best_of_2"] <= 1


def test_all_methods_are_compared_on_the_same_held_out_tasks(finished):
    run_dir, _ = finished
    result = json.load(open(os.path.join(run_dir, "evaluation.json")))
    assert set(result["methods"]) == set(METHODS) and result["num_tasks"] == 12
    for row in result["methods"].values():
        low, high = row["fulfilment_interval"]
        assert 0 <= low <= row["fulfilment"] <= high <= 1
    # every task has a witness, which fresh noise may refute
    assert result["methods"]["oracle"]["fulfilment"] >= 0.75
    assert result["methods"]["oracle"]["reward"] > max(
        result["methods"][name]["reward"] for name in MODELS
    )
    assert set(result["elsewhere"]) == {"new-links", "new-platforms", "new-words"}
    for split in result["elsewhere"].values():
        assert set(split["methods"]) == set(METHODS) and split["num_tasks"] == 4


def test_the_report_is_one_page_with_figures_results_and_three_shaded_responses(finished):
    run_dir, _ = finished
    page = open(os.path.join(run_dir, "report.html"), encoding="utf-8").read()
    assert page.count("data:image/png;base64,") == 3 and page.count("<div class='response'>") == 3
    assert all(title in page for title in METHODS.values()) and page.count("<th>numerics</th>") == 1
    # nothing else is needed
    assert set(re.findall(r"(?:src|href)='(?!data:)([^']*)'", page)) == {"config.yaml"}
    # opens with the answer
    assert page.index("<table>") < page.index("<h2>") < page.index("<details>")


def test_the_reports_charts_are_drawn_and_are_pictures_in_print(finished, browser):
    wrong, page = [], browser.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"file://{finished[0]}/report.html")
    assert (
        page.locator(".charts canvas").count() == 6
        and not page.locator(".picture img").is_visible()
    )
    drawn = page.evaluate(
        """[...document.querySelectorAll('.charts canvas')].map(canvas => new Set(new Uint32Array(
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size)"""  # noqa: E501
    )
    page.emulate_media(media="print")
    assert (
        page.locator(".picture img").is_visible()
        and not page.locator(".charts canvas").first.is_visible()
    )
    page.close()
    assert min(drawn) > 4 and wrong == []


def test_reports_of_several_runs_are_compared(finished, tmp_path):
    run_dir, _ = finished
    other = str(tmp_path / "<other>")
    shutil.copytree(run_dir, other)
    path = os.path.join(other, "config.yaml")
    text = open(path, encoding="utf-8").read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("beta_kl: 1.0", "beta_kl: 0.25"))
    code, out, err = finish(run_dir, other, module="experiments.stages.report")
    assert code == 0 and out == f"report: {os.path.join(run_dir, 'compare.html')}\n", err
    page = open(os.path.join(run_dir, "compare.html"), encoding="utf-8").read()
    assert (
        "<td>rldtf.beta_kl</td><td>1.0</td><td>0.25</td>" in page and page.count("<td>rldtf.") == 1
    )
    assert "&lt;other&gt;" in page and "<other>" not in page.replace('"<other>"', "")
    assert page.count(f"<td>{METHODS['rldtf']}</td>") == 2
    code, out, err = finish(run_dir, str(tmp_path), module="experiments.stages.report")
    assert code == 2 and not out and "expected a run that" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rldtf.weight_by": "grammar"},
        {
            "rldtf.advantage": "leave-one-out",
            "rldtf.samples_per_prompt": "2",
            "rldtf.with_critic": "false",
            "rldtf.perturb": "policy",
        },
    ],
    ids=str,
)
def test_shaded_responses_show_s_whatever_was_learnt_from(finished, changes):
    def shaded(*overrides):
        config = load(["preset=smoke", f"run_dir={finished[0]}", "rldtf.steps=6", *overrides])
        with opened(config, may_differ=tuple(changes)) as run:
            return shaded_responses(run)

    assert shaded() == shaded(*map("=".join, changes.items()))


def test_another_temperature_is_evaluated_beside_the_first(finished):
    run_dir, _ = finished
    before = open(os.path.join(run_dir, "evaluation.json"), encoding="utf-8").read()
    code, out, err = finish(
        "preset=smoke",
        f"run_dir={run_dir}",
        "rldtf.steps=6",
        "evaluate.temperature=0",
        module="experiments.stages.evaluate",
    )
    assert code == 0 and "95 % intervals" in out, err
    greedy = json.load(open(os.path.join(run_dir, "evaluation_at_0.json"), encoding="utf-8"))
    first = json.loads(before)
    assert greedy["temperature"] == 0 and greedy["by_task"]["oracle"] == first["by_task"]["oracle"]
    assert open(os.path.join(run_dir, "evaluation.json"), encoding="utf-8").read() == before


def test_a_finished_run_asked_for_again_only_reports(finished):
    run_dir, out = finished
    before = os.path.getmtime(os.path.join(run_dir, "rldtf", "metrics.jsonl"))
    code, again, err = finish("preset=smoke", f"run_dir={run_dir}", "rldtf.steps=6")
    assert code == 0, err
    assert again.splitlines()[:7] == out.splitlines()[:7]
    assert os.path.getmtime(os.path.join(run_dir, "rldtf", "metrics.jsonl")) == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("rldtf.alpah=1",), ("rldtf.alpah", "no such key", "alpha")),
        (("rldtf.alpha=-1",), ("rldtf.alpha", "-1", ">= 0")),
        (("seed=-1",), ("seed", "-1", ">= 0")),
        (("rldtf.alpha=high",), ("rldtf.alpha", "high", "a number")),
        (("preset=nothing",), ("preset", "nothing", "quickstart")),
        (
            ("tasks.directory=/no/such/place",),
            ("tasks.directory", "/no/such/place", "no such directory"),
        ),
        (
            ("model=hf", "model.hf_dir=/no/such/place"),
            ("model.hf_dir", "/no/such/place", "no such directory"),
        ),
        (("quickstart",), ("quickstart", "key=value")),
        (("rldtf.sample.temperature=0",), ("temperature",)),
        (("rldtf.lora_rank=0",), ("rldtf.lora_rank", "0", "an integer >= 1, or null")),
        (("translator=llm",), ("translator", "llm", "'grammar', 'tolerant', 'model'")),
        (("wandb=true",), ("wandb", "pip install wandb")),
    ],
)
def test_a_wrong_config_is_one_line_and_exit_status_2(tmp_path, arguments, words):
    code, out, err = finish(*arguments, f"run_dir={tmp_path / 'run'}")
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert all(word in err for word in words), err
    assert not (tmp_path / "run").exists()


def test_a_run_directory_is_not_mixed_with_another_config(finished):
    run_dir, _ = finished
    code, _, err = finish(
        "preset=smoke",
        f"run_dir={run_dir}",
        "rldtf.steps=6",
        "rldtf.alpha=3",
        module="experiments.stages.rldtf",
    )
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert "rldtf.alpha is 4.0 there and 3.0 here" in err
