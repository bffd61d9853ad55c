"""What the GPU benchmark counts, and that its programs run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import gpu
from rldtf_jax.qwen2 import Qwen2Config


def matrices(c):
    return c.num_hidden_layers * gpu.layer_weights(c) + c.vocab_size * c.hidden_size


@pytest.mark.parametrize(
    "preset, parameters", [("qwen2.5-0.5b", 494_032_768), ("qwen2.5-1.5b", 1_543_714_304)]
)
def test_all_weights_are_counted_but_norms_and_biases(preset, parameters):
    assert parameters - 3e5 < matrices(Qwen2Config.preset(preset)) < parameters


def test_an_update_takes_six_operations_a_weight_and_token_in_each_of_two_models():
    c = Qwen2Config.preset("qwen2.5-1.5b")
    layers, logits, tokens = (
        c.num_hidden_layers * gpu.layer_weights(c),
        c.vocab_size * c.hidden_size,
        64 * 512,
    )
    without_attention = 2 * 6 * layers * tokens + 8 * logits * tokens / 2
    attention = gpu.update_flops(c, 64, 256, 256) - without_attention
    assert (
        attention
        == 2
        * 3
        * 2
        * 2
        * c.num_hidden_layers
        * 64
        * (512 * 513 / 2)
        * c.num_attention_heads
        * c.head_dim
    )


def test_a_decoding_step_reads_each_weight_once_and_the_visible_cache():
    c = Qwen2Config.preset("qwen2.5-0.5b")
    assert gpu.decode_bytes(c, 0, 0) == 2 * matrices(c)
    assert gpu.decode_bytes(c, 3, 5) - gpu.decode_bytes(c, 0, 0) == 2 * 2 * 24 * 3 * 5 * 2 * 64


@pytest.mark.slow
def test_its_programs_run_on_a_cpu_too(tmp_path):
    out, parts = tmp_path / "gpu.json", ["ceilings", "update", "decode"]
    subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.gpu", "--smoke", "--only", *parts, "--out", str(out)],  # noqa: E501
        cwd=Path(__file__).parents[2], env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True, timeout=1000,  # noqa: E501
    )  # fmt: skip
    figures = json.loads(out.read_text())
    assert figures.keys() == {"machine", "numerics", *parts}
    assert all(
        "exit status 0" in ended
        for name, ended in figures["machine"].items()
        if name not in ("jax", "command")
    )
    assert not [
        name for part in figures.values() for name, figure in part.items() if "failed" in figure
    ]
