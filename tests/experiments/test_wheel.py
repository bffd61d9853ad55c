"""The wheel holds all that the commands need: built, installed into an empty directory, used from
there.
"""

import json
import os
import shutil
import subprocess
import sys

from running import LINK

from experiments.config import PROJECT


def test_a_wheel_answers_a_request_without_the_source_tree(tmp_path):
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    shutil.copytree(
        PROJECT,
        source,
        ignore=lambda path, names: [
            name
            for name in names
            if name.startswith(".")
            or name in ("runs", "build", "results", "tests", "__pycache__")
            or name.endswith(".egg-info")
        ],
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [
            *pip,
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(source),
        ],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("rldtf_jax-*.whl")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        timeout=300,
    )
    shutil.rmtree(source)
    work.mkdir()
    (work / "link.json").write_text(json.dumps({"scenario": LINK}))
    (work / "here.py").write_text(
        "import os, rldtf_jax, twin, experiments\nfrom experiments import"
        " config\nprint(*(os.path.dirname(os.path.dirname(m.__file__)) for m in (rldtf_jax, twin,"
        " experiments)))\nmade = config.load(['preset=quickstart',"
        " 'run_dir=run'])\nconfig.save(made, 'run/config.yaml')\nprint(made.model.directory)\n"
    )

    def python(*arguments):
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "PYTHONPATH": str(site)
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=work,
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout

    packages, model = python("here.py").splitlines()
    assert packages.split() == [str(site)] * 3 and model == str(
        site / "experiments/world/data/link-lite/phase1"
    )
    assert all((site / name / "py.typed").exists() for name in ("rldtf_jax", "twin", "experiments"))
    found = json.loads(
        python(
            "-m",
            "experiments.cli",
            "orchestrate",
            "Serve a shopper's browser.",
            "--link",
            "link.json",
            "--run",
            "run",
            "--model",
            model,
            "--json",
        )
    )
    assert found["code"].startswith("grid(") and set(found["measured"]) == {
        "delay_ms",
        "throughput_mbps",
        "ber",
    }
    assert {file.name for file in (site / "demo" / "static").iterdir()} >= {
        "index.html",
        "app.js",
        "style.css",
        "chart.umd.min.js",
        "chart.LICENSE.md",
    }
    assert os.access(site / "bin" / "rldtf", os.X_OK)
