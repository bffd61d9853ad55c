"""The memory plan reads what it says out of the compiled programs, and says no where it must."""

import math
import os
from pathlib import Path
import subprocess
import sys

from rldtf_jax.mesh import RULES
from rldtf_jax.qwen2 import Qwen2Config, param_table

SIZES = "--preset tiny --devices 4 --batch 8 --prompt 16 --response 16 --microbatches 2 --logit-chunk 8".split()


def plan(*options):
    return subprocess.run(
        [sys.executable, "-m", "experiments.plan", *SIZES, *options],
        cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def gigabytes(output, name):
    (line,) = (line for line in output.splitlines() if name in line)
    return float(line.split(name)[1].split()[0])


def test_a_plan_that_fits_prints_every_share_of_a_device():
    done = plan("--memory", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("fits: ")
    config = Qwen2Config.preset("tiny")
    share = lambda spec: math.prod(spec.shape) / (4 if any("fsdp" in RULES.get(axis, ()) for axis in spec.axes) else 1)
    expected = 4 * sum(n * share(s) for head, n in (("lm", 2), ("value", 1)) for s in param_table(config, head).values())
    assert gigabytes(done.stdout, "policy, critic, reference") == round(expected / 1e9, 3)
    assert gigabytes(done.stdout, "Adam's moments") > 0
    assert gigabytes(done.stdout, "gradients and activations") > 0
    assert "sampler: KV cache" in done.stdout


def test_a_plan_that_does_not_fit_says_so():
    done = plan("--memory", "0.001", "--skip-sampler")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith("does not fit: ")
