"""A corpus from archives of every kind: what is read, what each cleaning step takes away, what is
held out."""

import dataclasses
import gzip
import io
import json
import os
import random
import subprocess
import tarfile
import zipfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import finish

from experiments.config import load, presets
from experiments.corpus import clean, sources
from experiments.corpus.__main__ import PRESETS, CorpusConfig, build, draw, parts
from rldtf_jax.config import ConfigError

WORDS = (
    "the base station schedules a grant for each user and the transport block is sent again when"
    " the checksum fails so that the delay of a packet grows with the error rate of the link while"
    " wide carriers need more power than a small antenna of the cell edge could ever give to them"
).split()
PLAIN = clean.CleanConfig(least_words=20)


def prose(seed, sentences=12):
    rng = random.Random(seed)
    said = [" ".join(rng.choices(WORDS, k=14)).capitalize() + "." for _ in range(sentences)]
    return "\n".join(said)


def document(text, prose=True, name="a"):
    return clean.Document(name, "domain", prose, text)


@pytest.fixture
def archives(tmp_path):
    """The same two files as a directory, a wheel, a source archive and a Debian package."""
    files = {"docs/one.txt": prose(1).encode(), "docs/two.txt.gz": gzip.compress(prose(2).encode())}
    folder = tmp_path / "folder"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "docs" / "big.txt").write_bytes(b"x" * (sources.LARGEST + 1))
    (folder / "code.py").write_text("x = 1")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / "DEBIAN").mkdir()
    (folder / "DEBIAN" / "control").write_text(
        "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a\n"
    )
    subprocess.run(
        ["dpkg-deb", "--build", folder, tmp_path / "a.deb"], check=True, capture_output=True
    )
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "a.whl", "a.tar.gz", "a.deb"])
def test_every_archive_gives_the_same_files(archives, name):
    source = sources.SourceConfig(
        packages=(str(archives / name),), files=("*.txt", "*.gz"), licence="none"
    )
    found = {
        raw.name.rpartition(f"/{name}/")[2]: raw.data.decode()
        for raw in sources.files("mine", source, str(archives / name))
    }
    assert found == {"docs/one.txt": prose(1), "docs/two.txt.gz": prose(2)}


def test_a_small_file_that_unpacks_without_end_is_cut(archives):
    (archives / "folder" / "docs" / "bomb.gz").write_bytes(
        gzip.compress(b"x" * (2 * sources.LARGEST))
    )
    source = sources.SourceConfig(packages=("-",), files=("*bomb.gz",), licence="none")
    (raw,) = sources.files("mine", source, str(archives / "folder"))
    assert len(raw.data) == sources.LARGEST


RFC = """Network Working Group                                         A. Author
Request for Comments: 9999                                     May 2020

                     A Protocol of Nothing

Status of This Memo

   This memo provides information for nobody.

Table of Contents

   1.  Introduction ................ 1

1.  Introduction

   A sender sends nothing to a receiver.

Author                       Informational                      [Page 1]
\x0c
RFC 9999                  Nothing                      May 2020

   The receiver acknowledges it.

2.  References

   [1]  Nobody, "Nothing".

Author's Address

   A. Author
"""


def test_an_rfc_loses_pages_law_and_addresses():
    text = clean.repaired(sources.rfc(RFC))
    assert "A sender sends nothing to a receiver.\n\n   The receiver acknowledges it." in text
    for gone in ("Status", "nobody", "....", "[Page", "RFC 9999", "Nobody", "Address", "\x0c"):
        assert gone not in text


def test_docstrings_stand_under_their_names():
    code = '"""Module."""\nclass Mapper:\n    """Maps bits."""\n    def call(self): return 1\n'
    assert sources.docstrings(code) == "Module.\n\nMapper\n\nMaps bits."
    assert sources.docstrings("def broken(:") == ""


def test_a_page_loses_its_navigation():
    page = (
        "<html><body><nav><a href='#'>Home</a><a href='#'>Next page</a></nav><main><h1>Links</h1>"
        + "".join(f"<p>{line}</p>" for line in prose(3).splitlines())
        + "</main><footer>Copyright</footer></body></html>"
    )
    text = sources.article(page)
    assert prose(3).splitlines()[4] in text and "Next page" not in text


@pytest.mark.parametrize(
    "text, reason",
    [
        (prose(4), None),
        ("A few words.", "too short"),
        (prose(4) + "\ufffd" * 30, "unreadable"),
        ("\n".join(["the grant is for one user alone and for nobody else"] * 9), "repeats itself"),
        ("\n".join(f"a b c d e f {i:c}" for i in range(65, 91)), "odd words"),
        ("\n".join(f"{i} {i + 1} {1000 * i} 777 8888 99999 port" for i in range(9)), "figures"),
        (
            "Die Basisstation teilt jedem Nutzer eine Zuweisung zu.\nDer Block wird noch einmal"
            " gesendet, wenn die Prüfsumme nicht stimmt, sodass die Verzögerung wächst.",
            "another language",
        ),
    ],
)
def test_each_filter_by_its_name(text, reason):
    assert clean.fault(document(text), PLAIN) == reason


def test_code_is_not_held_against_prose():
    lines = "\n".join(["rrcConnectionRequest SEQUENCE OF OPTIONAL ARGUMENTS,"] * 9)
    assert clean.fault(document(lines), PLAIN) == "repeats itself"
    assert (
        clean.fault(document(lines, prose=False), dataclasses.replace(PLAIN, most_word=12)) is None
    )


def test_encodings_are_mended():
    broken = "The café’s “link” is √2 better".encode().decode("latin-1")
    assert clean.repaired(broken) == "The café’s “link” is √2 better"
    assert clean.repaired("a\r\nb  \n\n\n\n\nc\x07\n") == "a\nb\n\nc"
    assert sources.decoded("é".encode("latin-1")) == sources.decoded("é".encode()) == "é"


def test_duplicates_are_found_alike_and_nearly():
    long = prose(5, 60)
    some = [
        document(long, name="first"),
        document(long.upper().replace("\n", "  "), name="shouted"),
        document(long.replace("Checksum", "Parity") + "\nOne more line.", name="edited"),
        document(prose(6, 60), name="other"),
    ]
    counts = Counter()
    kept = list(clean.cleaned(some, PLAIN, clean.Duplicates(PLAIN), counts))
    assert [one.name for one in kept] == ["first", "other"]
    assert counts["exact duplicate"] == 1 and counts["near duplicate"] == 1
    assert counts["read"] == 4 and counts["kept"] == 2


@given(st.text(alphabet="ab \n.", max_size=300), st.integers(5, 60))
def test_parts_hold_every_word_once_in_order(text, most):
    pieces = list(parts(text, most))
    assert " ".join(pieces).split() == text.split()
    assert all(len(piece) <= max([most, *map(len, text.split())]) for piece in pieces)


def config_of(tmp_path, **options):
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    for i in range(40):
        (folder / f"{i}.txt").write_text(prose(i, 30))
        (folder / f"{i}.md").write_text(prose(1000 + i, 30))
    own = {"packages": [str(folder)], "licence": "mine"}
    return CorpusConfig(
        directory=str(tmp_path / "corpus"),
        held_out=0.2,
        part=1000,
        sources={
            "mine": sources.SourceConfig(**own | {"files": ("*.txt",)}),
            "others": sources.SourceConfig(
                **own | {"files": ("*.md",), "share": "general", "limit": 10}
            ),
        },
        **options,
    )


def lines(config, split):
    with open(os.path.join(config.directory, f"{split}.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_no_document_is_on_both_sides_and_nothing_is_lost(tmp_path):
    config = config_of(tmp_path)
    made = build(config)
    train, held_out = lines(config, "train"), lines(config, "held_out")
    names = [{row["name"] for row in rows} for rows in (train, held_out)]
    assert names[0] and names[1] and not names[0] & names[1]
    assert len(names[0] | names[1]) == 50  # 40, and 10 of the limit
    assert {row["share"] for row in train} == {"domain", "general"}
    assert max(len(row["text"]) for row in train) <= 1000
    for split, rows in (("train", train), ("held_out", held_out)):
        said = sum(made["characters"][f"{split}, {share}"] for share in ("domain", "general"))
        assert said == sum(len(row["text"]) for row in rows)
    again = [lines(config, split) for split in ("train", "held_out")]
    build(config)
    assert [lines(config, split) for split in ("train", "held_out")] == again
    order = [row["name"] for row in train]
    assert order != sorted(order)


def test_what_is_held_out_does_not_depend_on_the_other_sources(tmp_path):
    config = config_of(tmp_path)
    build(config)
    held_out = {row["name"] for row in lines(config, "held_out") if row["share"] == "domain"}
    alone = dataclasses.replace(config, sources={"mine": config.sources["mine"]})
    build(alone)
    assert {row["name"] for row in lines(alone, "held_out")} == held_out
    share = sum(draw(0, "held out", i) < 0.2 for i in range(5000)) / 5000
    assert abs(share - 0.2) < 0.03


@pytest.mark.parametrize("name", presets(PRESETS))
def test_the_presets_name_a_licence_for_each_source(name):
    config = load([f"preset={name}"], CorpusConfig, PRESETS, "telecom")
    assert {source.share for source in config.sources.values()} == {"domain", "general"}
    assert all(source.licence for source in config.sources.values())


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["sources.rfc.share=both"], "sources.rfc.share = 'both': expected one of"),
        (["held_out=0"], "held_out = 0.0: expected a number in (0, 1)"),
        (["clean.near=2"], "clean.near = 2.0: expected a number in [0, 1]"),
        (["sources.rfc.licence=' '"], "licence = ' ': expected what the text may be used for"),
    ],
)
def test_wrong_keys_are_one_line(overrides, said):
    with pytest.raises(ConfigError) as error:
        load(overrides, CorpusConfig, PRESETS, "telecom")
    assert said in str(error.value)


def test_the_command_refuses_in_one_line(tmp_path):
    code, _, err = finish(f"directory={tmp_path}", "part=1", module="experiments.corpus")
    assert (code, err) == (2, "error: part = 1: expected at least 100 characters\n")


def test_a_package_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="sources.mine.packages = 'no-such-package-of-ours'"):
        sources.archives(
            "mine",
            sources.SourceConfig(
                registry="npm", packages=("no-such-package-of-ours",), licence="none"
            ),
            str(tmp_path),
        )
    assert not (tmp_path / "mine" / "no-such-package-of-ours").exists()


def test_a_package_of_a_registry_is_fetched_once(tmp_path, monkeypatch):
    source = sources.SourceConfig(registry="pypi", packages=("ftfy==6.3.1",), licence="Apache-2.0")
    (path,) = sources.archives("some", source, str(tmp_path))
    assert any(raw.name.endswith("ftfy/fixes.py") for raw in sources.files("some", source, path))
    monkeypatch.setitem(sources.FETCH, "pypi", ("false",))
    assert sources.archives("some", source, str(tmp_path)) == [path]
