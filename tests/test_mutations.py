"""The list of mutations still applies to the code; `make mutations` runs it."""

import re
from collections import Counter

import mutate


def test_every_mutation_applies_once_and_names_tests_that_there_are() -> None:
    mutations = mutate.read(mutate.LIST.read_text())
    assert len(mutations) >= 40
    assert max(Counter(one.name for one in mutations).values()) == 1
    for one in mutations:
        changed = mutate.mutated((mutate.ROOT / one.file).read_text(), one)
        compile(changed, one.file, "exec") if one.file.endswith(".py") else None
        assert one.tests
        assert all((mutate.ROOT / tests.split()[0]).is_file() for tests in one.tests), one.name


def test_mutations_are_spread_over_the_folders() -> None:
    """A mistake in every folder of the house, and in the core."""
    folders = {one.file.rpartition("/")[0] for one in mutate.read(mutate.LIST.read_text())}
    house = {path.parent.relative_to(mutate.ROOT).as_posix() for path in mutate.ROOT.glob("orchestration/**/*.py")}
    with_code = {folder for folder in house if folder != "orchestration"}
    assert with_code <= folders
    assert {"fsg", "fsg/estimators"} <= folders


def test_a_block_is_read_as_it_is_written() -> None:
    text = '### a name\n`a.py` · `t.py -k "b or c"` · `u.py`\n```diff\n-    x = 1\n-    y = 2\n+    x = 2\n```\n'
    (one,) = mutate.read(text)
    assert one == ("a name", "a.py", ('t.py -k "b or c"', "u.py"), "    x = 1\n    y = 2", "    x = 2")
    assert mutate._words(one.tests[0]) == ["t.py", "-k", "b or c"]
    assert mutate.mutated("    x = 1\n    y = 2\n", one) == "    x = 2\n"
    assert re.search("0 times", str(_error(one)))


def _error(one: mutate.Mutation) -> ValueError:
    try:
        mutate.mutated("z = 3", one)
    except ValueError as error:
        return error
    raise AssertionError("nothing was raised")
