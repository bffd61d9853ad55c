"""What a run's figures depend on beside its config and seed: the code, the processor and the
versions of what computes.
"""

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.files import exists, json_lines, whole
from rldtf_jax import hosts

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "numba",
    "sionna-no-rt",
    "tensorflow",
    "tokenizers",
)


def machine() -> dict[str, str]:
    """The code, the processor, the libraries, and `numerics`: a checksum of a small model's forward
    and backward pass. Where that differs, the last bits of a training do, and after some steps its
    samples.
    """
    versions = ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    )
    return {
        "code": code(),
        "processor": processor(),
        "backend": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": versions,
        "numerics": f"{checksum():08x}",
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def code() -> str:
    """The commit that this file stands in, and whether something else does too; outside a
    repository the package's version.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", os.path.dirname(__file__), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        # an installation inside somebody else's repository is not of it
        git("ls-files", "--error-unmatch", os.path.basename(__file__))
        return git("rev-parse", "--short=12", "HEAD") + (
            " and changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return f"rldtf-jax {version('rldtf-jax')}"


def processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


@functools.cache
def checksum() -> int:
    """Of attention, a gated MLP and their gradient at fixed numbers, in float32."""

    def loss(w):
        attended = jax.nn.softmax(x @ w @ x.T / 8) @ x
        return jax.nn.logsumexp(jax.nn.silu(attended @ w) * jnp.tanh(x), axis=-1).mean()

    x, w = (
        jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
        for seed, shape in enumerate(((96, 64), (64, 64)))
    )
    value, slope = jax.jit(jax.value_and_grad(loss))(w)
    return zlib.crc32(np.asarray(slope).tobytes(), zlib.crc32(np.asarray(value).tobytes()))


def note(path: str) -> None:
    """Adds this machine to the JSON lines at `path`, where it is not the last one there."""
    noted, here = json_lines(path) if exists(path) else [], machine()
    if hosts.told(noted[-1:] != [here]):
        with whole(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in (*noted, here))
