"""Mutation testing: which change to the library would the unit tests not notice?

    python tools/mutants.py [how many] [seed]

A mutant is the library with one small change: a comparison turned round, a number
off by one, a `detach` forgotten. A test that fails kills it. Lines are drawn at
random from all lines of `rl_notes`, and of each line one of its mutants, which is
then put to the tests that run this line, the quick ones first. Whoever survives is
printed with its change: a test is missing, or the change makes no difference.

Most mutants are cosmic-ray's; the four kinds that it lacks are below. What was
found is stored mutant by mutant in build/mutants, and a run that stopped goes on.
"""

import ast
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from gate import PYTEST, ROOT, environment

HOME = ROOT / "build" / "mutants"
AREAS = ["equations", "updates", "maze", "language", "gate/test_device.py"]
NAMES = "exercises numbers plotting recipes results"
BOOK = [f"book/test_{name}.py" for name in NAMES.split()]
TESTS = [f"tests/{area}" for area in (*AREAS, *BOOK)]
TYPES = "--jaxtyping-packages=rl_notes,beartype.beartype"
PAIRS = ("mean sum", "max min", "any all", "maximum minimum", "argmax argmin")
SWAPPED = dict(pair.split() for pair in PAIRS)
SWAPPED |= {second: first for first, second in SWAPPED.items()}
# A mutant that runs for ever has been noticed.
PATIENCE = 300


@dataclass(frozen=True)
class Mutant:
    """One change: `kind` at `place`, the how-manieth or the span of characters."""

    path: str
    line: int
    kind: str
    place: tuple[int, ...]
    new: str = ""

    def applied(self, source: str) -> str:
        """Return the source with this change."""
        if self.kind.startswith("core/"):
            changed = mutate_code(source, get_operator(self.kind)(), *self.place)
            assert isinstance(changed, str)
            return changed
        start, stop = self.place
        return source[:start] + self.new + source[stop:]

    def shown(self) -> str:
        """Return the change as a reader sees it: the old lines and the new ones."""
        old = (ROOT / self.path).read_text(encoding="utf-8")
        before, after = old.splitlines(), self.applied(old).splitlines()
        lines = [line for line in unified_diff(before, after, n=0) if line[0] in "+-"]
        return "\n    ".join([f"{self.path}:{self.line}  {self.kind}", *lines[2:]])


def offsets(source: str) -> list[int]:
    """Return where each line begins, in bytes, as `ast` counts columns."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def own_mutants(path: str, source: str) -> Iterator[Mutant]:
    """Find the mutants that cosmic-ray lacks: a call, an option or a line left out."""
    assert source.isascii(), f"{path}: characters would not be bytes"
    starts = offsets(source)

    def end(node: ast.expr | ast.stmt | ast.keyword) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return starts[node.end_lineno - 1] + node.end_col_offset

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and not (node.args or node.keywords):
                span = (end(called) - len(called.attr) - 1, end(node))
                yield Mutant(path, node.end_lineno or 0, "call left out", span)
            for word in node.keywords:
                start = starts[word.lineno - 1] + word.col_offset
                stop = end(word)
                stop += source[stop : stop + 1] == ","
                yield Mutant(path, word.lineno, "option left out", (start, stop))
            name = getattr(called, "attr", getattr(called, "id", ""))
            if name in SWAPPED:
                span = (end(called) - len(name), end(called))
                line = called.end_lineno or 0
                yield Mutant(path, line, "its opposite", span, SWAPPED[name])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            span = (starts[node.lineno - 1] + node.col_offset, end(node))
            yield Mutant(path, node.lineno, "line left out", span, "pass")


def unchecked(source: str) -> set[int]:
    """Return the lines of annotations alone, which decide nothing when they run."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        kinds = [getattr(node, name, None) for name in ("annotation", "returns")]
        for note in kinds:
            if isinstance(note, ast.expr):
                lines |= set(range(note.lineno, (note.end_lineno or 0) + 1))
    return lines


def listed_mutants(path: str) -> Iterator[Mutant]:
    """List every mutant of a module."""
    source = (ROOT / path).read_text(encoding="utf-8")
    yield from own_mutants(path, source)
    nodes = list(ast_nodes(get_ast(source)))
    notes = unchecked(source)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or name in ("core/NoOp", "core/RemoveDecorator"):
            continue
        count = 0
        for node in nodes:
            for (line, _), _ in operator().mutation_positions(node):
                # `int | None` is no sum, and the bare `*` among parameters no product.
                kind = str(node.parent and node.parent.type)
                written = line in notes and "BinaryOperator_BitOr" in name
                if not (written or kind.startswith("param")):
                    yield Mutant(path, line, name, (count,))
                count += 1


def drawn(how_many: int, seed: int) -> list[Mutant]:
    """Draw lines at random, and one mutant of each: first its kind, then which."""
    kinds: dict[tuple[str, int], dict[str, list[Mutant]]] = {}
    for path in sorted((ROOT / "rl_notes").rglob("*.py")):
        for mutant in listed_mutants(path.relative_to(ROOT).as_posix()):
            of_line = kinds.setdefault((mutant.path, mutant.line), defaultdict(list))
            of_line[re.sub("_.*", "", mutant.kind)].append(mutant)
    dice = random.Random(seed)
    lines = dice.sample(sorted(kinds), how_many)
    return [
        dice.choice(kinds[line][dice.choice(sorted(kinds[line]))]) for line in lines
    ]


# Which tests run a line, and how long they take


def copied(folder: Path) -> Path:
    """Copy what git knows of the working tree."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, files.split("\0")):
        with suppress(FileNotFoundError):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def measured() -> tuple[dict[tuple[str, int], set[str]], dict[str, float]]:
    """Run the unit tests once; return who runs which line, and each test's seconds."""
    HOME.mkdir(parents=True, exist_ok=True)
    data, report = HOME / "coverage", HOME / "report.xml"
    if not report.exists():
        with tempfile.TemporaryDirectory() as name:
            folder = copied(Path(name))
            rules = "[run]\nrelative_files = true\nsource = rl_notes\n"
            (folder / ".coveragerc").write_text(rules, encoding="utf-8")
            cover = ["--cov", "--cov-context=test", "--cov-report="]
            spread = ["-n", "2", "--dist", "loadgroup", f"--junitxml={report}.new"]
            subprocess.run(
                [*PYTEST, TYPES, *cover, *spread, *TESTS],
                cwd=folder,
                env=environment(folder) | {"COVERAGE_FILE": str(data)},
                check=True,
            )
            Path(f"{report}.new").rename(report)
    seconds = {}
    for case in ElementTree.parse(report).iter("testcase"):
        home = case.attrib["classname"].replace(".", "/") + ".py"
        seconds[f"{home}::{case.attrib['name']}"] = float(case.attrib["time"])
    runs: dict[tuple[str, int], set[str]] = defaultdict(set)
    with sqlite3.connect(data) as table:
        rows = table.execute(
            "select path, context, numbits from line_bits"
            " join file on file.id = file_id join context on context.id = context_id"
        )
        for path, context, bits in rows:
            test = context.split("|")[0].split("@")[0]
            for number in range(len(bits) * 8):
                if bits[number // 8] & (1 << number % 8):
                    runs[path, number].add(test)
    return runs, seconds


def concerned(
    mutant: Mutant, runs: dict[tuple[str, int], set[str]], seconds: dict[str, float]
) -> list[str]:
    """Return the tests that run the line, or the module if it is run on import."""
    tests = runs[mutant.path, mutant.line]
    if not tests - {""}:  # run on import: whoever runs or names the module
        of_module = (found for (path, _), found in runs.items() if path == mutant.path)
        tests = set().union(*of_module)
        name = Path(mutant.path).stem
        files = {test.split("::")[0] for test in seconds}
        naming = {f for f in files if name in (ROOT / f).read_text(encoding="utf-8")}
        tests |= {test for test in seconds if test.split("::")[0] in naming}
    # Where even the module is imported before anyone looks, all tests are asked, and
    # the tests that read the code as a text always are.
    known = {test for test in tests if test in seconds} or set(seconds)
    known |= {t for t in seconds if "without_a_device" in t and mutant.path in t}
    return sorted(known, key=lambda test: seconds[test])


def verdict(folder: Path, mutant: Mutant, tests: list[str]) -> str:
    """Put a mutant to its tests in `folder`."""
    if not tests:
        return "no test runs it"
    target = folder / mutant.path
    source = target.read_text(encoding="utf-8")
    arguments = folder / "arguments.txt"
    arguments.write_text("\n".join(tests), encoding="utf-8")
    target.write_text(mutant.applied(source), encoding="utf-8")
    try:
        done = subprocess.run(
            [*PYTEST, "-x", TYPES, f"@{arguments}"],
            cwd=folder,
            env=environment(folder) | {"PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "killed: it never ended"
    finally:
        target.write_text(source, encoding="utf-8")
    if done.returncode == 0:
        return "survived"
    first = [
        line for line in done.stdout.splitlines() if re.match("FAILED|ERROR", line)
    ]
    return f"killed: {first[0][:160] if first else done.stderr[-160:]}"


def main(how_many: int = 100, seed: int = 0) -> int:
    """Draw mutants, put each to its tests, and say who survived."""
    mutants = drawn(how_many, seed)
    runs, seconds = measured()
    stored = HOME / f"{seed}.jsonl"
    known: dict[str, str] = {}
    if stored.exists():
        for line in stored.read_text(encoding="utf-8").splitlines():
            known |= {json.dumps(json.loads(line)[0]): json.loads(line)[1]}
    folders: SimpleQueue[Path] = SimpleQueue()

    def judge(mutant: Mutant) -> tuple[Mutant, str]:
        key = json.dumps(asdict(mutant))
        if key not in known:
            folder = folders.get()
            known[key] = verdict(folder, mutant, concerned(mutant, runs, seconds))
            folders.put(folder)
            with stored.open("a", encoding="utf-8") as file:
                file.write(json.dumps([asdict(mutant), known[key]]) + "\n")
        print(known[key][:6], mutant.path, mutant.line, mutant.kind, flush=True)
        return mutant, known[key]

    with tempfile.TemporaryDirectory() as name:
        for number in range(os.cpu_count() or 1):
            folders.put(copied(Path(name) / str(number)))
        with ThreadPoolExecutor(folders.qsize()) as pool:
            verdicts = list(pool.map(judge, mutants))
    alive = [(m, said) for m, said in verdicts if not said.startswith("killed")]
    print(f"\n{len(verdicts) - len(alive)} of {len(verdicts)} mutants killed")
    for mutant, said in alive:
        print(f"\n{said}: {mutant.shown()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
