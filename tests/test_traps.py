"""The table of traps and the tests that name them agree."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parent


def test_every_trap_of_the_table_has_a_test_with_its_number_and_no_test_names_another():
    table = set(re.findall(r"^\| (\d+) \|", (TESTS / "TRAPS.md").read_text(), re.MULTILINE))
    named = re.findall(
        r"^ *(?:def test_.*)?# TRAPS ([\d, ]+)$",
        "\n".join(p.read_text() for p in TESTS.rglob("test_*.py")),
        re.MULTILINE,
    )
    assert (
        table == {number for numbers in named for number in numbers.split(", ")} and len(table) >= 6
    )
