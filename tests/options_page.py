"""The tables of the page on options, as rows."""

import ast
import re
from dataclasses import dataclass
from typing import Any

from gate import ROOT

PAGE = (ROOT / "book" / "options.md").read_text(encoding="utf-8")
HEAD = "| in | option | default |"
LINE = re.compile(r"\| (?P<where>[^|]+) \| (?P<option>[^|]+) \| (?P<default>[^|]*)\|")
NOT_HERE = "What this library does not have, or leaves to you"


@dataclass(frozen=True)
class Row:
    """What an option is called somewhere, and its default there."""

    section: str
    where: str
    option: str  # as it is printed, the backticks of a code span included
    default: str

    @property
    def code(self) -> str:
        """The option, if it is one code span."""
        assert re.fullmatch(r"`[^`]+`", self.option), self.option
        return self.option.strip("`")

    @property
    def name(self) -> str:
        return self.code.split("=")[0]

    @property
    def value(self) -> Any:
        """What the option is to be set to, or None if its name is all that is said."""
        _, equals, value = self.code.partition("=")
        return ast.literal_eval(value) if equals else None

    def __str__(self) -> str:
        return f"{self.where}: {self.option}"


def rows() -> list[Row]:
    """Every row of a table of options. A line that is no such row ends the table."""
    found, section, inside = [], "", False
    for line in PAGE.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        if line == HEAD:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and (cells := LINE.fullmatch(line)) and cells["where"] != "---":
            where, option, default = (cells[n].strip() for n in cells.groupdict())
            found.append(Row(section, where, option, default))
    return found


ROWS = rows()


def of(*libraries: str) -> list[Row]:
    return [row for row in ROWS if row.where.split(",")[0] in libraries]


def settings() -> dict[str, Any]:
    """The options of the one block of code, as given to GRPOConfig."""
    (block,) = re.findall(r"```python\n(GRPOConfig\(.*?\))\n```", PAGE, re.DOTALL)
    call = ast.parse(block, mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
