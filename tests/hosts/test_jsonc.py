"""One value changes in a JSON file with comments; every other byte that says something stays."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshot_mcp.hosts import jsonc

DATA: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
NOTES = ["", " ", "/* a */", "// b\n", "\n", "/* c\n */"]


@given(
    st.dictionaries(st.sampled_from(["servers", "a", "b", "é"]), DATA, max_size=4),
    st.sampled_from([None, 1, 2, 4, "\t"]),
    st.randoms(use_true_random=False),
)
def test_data_is_there_and_all_else_stays(document: dict[str, Any], indent: Any, chance: Any) -> None:
    """Comments between any two tokens, and in any layout."""
    if not isinstance(document.get("servers", {}), dict):
        document["servers"] = {"other": document["servers"]}
    plain = json.dumps(document, indent=indent, ensure_ascii=False)
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|-?\w+|[{}\[\]:,]|\s+', plain)
    text = "".join(token + chance.choice(NOTES) for token in tokens)
    assert jsonc.read(text) == document
    entry = {"command": "/bin/é", "args": ["x"]}
    changed = jsonc.put(text, ("servers", "ours"), entry)
    assert jsonc.read(changed) == document | {"servers": document.get("servers", {}) | {"ours": entry}}
    notes = re.compile(r"/\*.*?\*/|// b\n", re.DOTALL)
    assert notes.findall(changed) == notes.findall(text)
    assert jsonc.put(changed, ("servers", "ours"), entry) == changed


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("{}", '{\n  "s": {\n    "x": 1\n  }\n}'),
        ('{\n    "a": 1, // one\n}\n', '{\n    "a": 1, // one\n    "s": {\n        "x": 1\n    },\n}\n'),
        ('{\n\t"s": {\n\t\t"y": 2 /* two */\n\t}\n}', '{\n\t"s": {\n\t\t"y": 2, /* two */\n\t\t"x": 1\n\t}\n}'),
        ('{"s": {"x": 0}}', '{"s": {"x": 1}}'),
        ('{"s": {/* a */}/* b */\n}', '{"s": {\n  "x": 1\n/* a */}/* b */\n}'),
        ('{\r\n  "s": {}\r\n}', '{\r\n  "s": {\r\n    "x": 1\r\n  }\r\n}'),
    ],
)
def test_the_layout_is_that_of_the_file(text: str, changed: str) -> None:
    assert jsonc.put(text, ("s", "x"), 1) == changed


@pytest.mark.parametrize(
    "text",
    ["[]", '{"s": 1}', '{"s": {}, "s": {}}', "{", '{"s" {}}', "nonsense", '{"a": 01}', "{} {}", '{"s": [}', "'a'"],
)
def test_what_cannot_be_changed_safely_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        jsonc.put(text, ("s", "x"), 1)


def test_a_line_is_named() -> None:
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        jsonc.read('{\n"a": 1\n"b": 2}')


def test_a_file_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        jsonc.read("[" * 100_000)
