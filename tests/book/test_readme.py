"""The code of the front pages prints what they say, run against the built wheel."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gate import ROOT, built_site, environment

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Runs the blocks one after the other, as a reader would paste them.
DRIVER = """
import contextlib, io, json, sys
names = {"__name__": "__main__"}
outputs = []
for block in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block, "README.md", "exec"), names)
    outputs.append(printed.getvalue())
print(json.dumps(outputs))
"""


def promised(readme: str) -> list[tuple[str, str]]:
    """Return each python block with the text block directly after it, or nothing."""
    fences = list(FENCE.finditer(readme))
    pairs = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] != "python":
            continue
        follows = (
            after is not None
            and after[1] == "text"
            and not readme[fence.end() : after.start()].strip()
        )
        pairs.append((fence[2], after[2] if follows else ""))
    return pairs


def test_the_blocks_are_found():
    first = "```python\na\n```\n\n```text\n1\n```\n"
    second = "```python\nb\n```\nso\n```text\n2\n```\n"
    assert promised(first + second) == [("a\n", "1\n"), ("b\n", "")]


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_page_prints_what_it_says(page: str, tmp_path: Path):
    pairs = promised((ROOT / page).read_text(encoding="utf-8"))
    assert any(output for _, output in pairs), f"{page} shows no output of its code"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([code for code, _ in pairs]),
        cwd=tmp_path,
        env=environment(built_site()),
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [output for _, output in pairs]
    assert done.stderr == ""
