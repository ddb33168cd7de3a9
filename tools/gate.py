"""The gate: the stages of `make test`, one function each.

    python tools/gate.py check unit notebooks book site

`tests/gate/test_gate.py` plants faults and calls these same functions.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from notebook_rules import code_cells, load

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
SITE = BUILD / "site"
OFFLINE = ROOT / "tools" / "offline"
CELL_SECONDS = 300
PYTEST = [sys.executable, "-P", "-m", "pytest", "-q", "--no-header"]
# Floating point differs between processors and thread counts. These settings make
# one machine behave like several: `make test-portability` runs the notebooks in each.
PORTABILITY: tuple[dict[str, str], ...] = (
    {},
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"MKL_CBWR": "COMPATIBLE"},
    {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    },
)


class Refused(Exception):
    """A stage found a fault. The message says which."""


def environment(library: Path) -> dict[str, str]:
    """Return the variables under which a command of the gate runs.

    `library` is the folder from which `rl_notes` is imported. The network is
    refused, each process computes with one thread on the CPU, and nobody's own
    settings of Jupyter, IPython or Matplotlib have a say.
    """
    dropped = {"MPLBACKEND", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "PYTHONHOME"}
    dropped |= {"RL_NOTES_REAL_MODEL"}  # the chapter on it shows its stored runs
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(library), str(OFFLINE)]),
        "RL_NOTES_LIBRARY": str(library),
        "RL_NOTES_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(BUILD / "hub"),  # empty: no model of the Hub is at hand
        "TQDM_DISABLE": "1",  # progress bars are for people
        "MPLCONFIGDIR": str(BUILD / "matplotlib"),
        "IPYTHONDIR": str(BUILD / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def run(command: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str]) -> None:
    """Run a command and refuse when it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, check=False)
    if done.returncode:
        raise Refused(f"`{' '.join(command[1:6])}` failed; the lines above say why")


def run_quietly(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
    """Run a command, and show what it printed only when it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        print(done.stdout, flush=True)
        raise Refused(f"`{Path(command[0]).name}` failed; the lines above say why")


# The package, as a reader installs it


def package_sources() -> list[Path]:
    """List the files that go into the wheel, in a fixed order."""
    about = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    inside = [path for path in (ROOT / "rl_notes").rglob("*") if path.is_file()]
    return sorted(path for path in about + inside if path.suffix != ".pyc")


def built_site() -> Path:
    """Build the wheel, unpack it into build/site, and return that folder.

    Nothing is done when no source has changed since the last time.
    """
    digest = hashlib.sha256()
    for path in package_sources():
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    stamp = BUILD / "site.sha256"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest.hexdigest():
        return SITE
    stamp.unlink(missing_ok=True)
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        unpack_wheel(Path(folder))
    stamp.write_text(digest.hexdigest(), encoding="utf-8", newline="\n")
    return SITE


def unpack_wheel(folder: Path) -> None:
    """Build the wheel from a copy of the sources and install it into build/site.

    The copy matters: setuptools keeps what it builds beside the sources, and a
    module that has been deleted would still be in the next wheel.
    """
    for path in package_sources():
        copy = folder / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "./source"]
    run_quietly([*pip, *build], cwd=folder, env=os.environ)
    wheel = next(folder.glob("*.whl"))
    install = ["install", "--no-index", "--no-deps", "--target", "site", wheel.name]
    run_quietly([*pip, *install], cwd=folder, env=os.environ)
    if SITE.exists():
        shutil.rmtree(SITE)
    (folder / "site").rename(SITE)


# The stages


def book_notebooks() -> list[Path]:
    """List the notebooks of the book."""
    return sorted((ROOT / "book").glob("*.ipynb"))


def check() -> None:
    """Run ruff and mypy."""
    for tool in ("ruff check -q", "ruff format --check -q", "mypy"):
        run([sys.executable, "-m", *tool.split()], env=os.environ)


def unit() -> None:
    """Run the unit tests, the rules for notebooks among them, against the wheel."""
    types = "--jaxtyping-packages=rl_notes,beartype.beartype"
    workers = ["-n", "2", "--dist", "loadgroup"]
    run([*PYTEST, *workers, types, "tests"], env=environment(built_site()))


def notebooks() -> None:
    """Execute every notebook again and compare each output with the stored one."""
    seconds = run_nbval(book_notebooks())
    for name, spent in seconds.items():
        print(f"{spent:8.1f} s  {name}", flush=True)


def run_nbval(
    paths: Sequence[Path], settings: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Run strict nbval on a copy of each notebook, each alone in an empty folder.

    Returns the seconds each notebook took. Refuses a wrong output, an error, and a
    cell that was not looked at.
    """
    if not paths:
        raise Refused("there are no notebooks in book/")
    env = environment(built_site()) | dict(settings or {})
    # The first import of Matplotlib on a machine lists its fonts and says so.
    run([sys.executable, "-c", "import matplotlib.font_manager"], env=env)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        copies = [copy_alone(path, folder) for path in paths]
        report = folder / "report.xml"
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        nbval = [
            *PYTEST,
            *("-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider"),
            *("--nbval", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"),
            *("-n", "2" if len(paths) > 1 else "0", "--dist", "loadscope"),
            f"--junitxml={report}",
        ]
        run([*nbval, *map(str, copies)], cwd=folder, env=env)
        return read_report(report, paths)


def copy_alone(notebook: Path, folder: Path) -> Path:
    """Copy a notebook into a folder of its own."""
    home = folder / notebook.stem
    home.mkdir()
    return Path(shutil.copy(notebook, home))


def read_report(report: Path, paths: Sequence[Path]) -> dict[str, float]:
    """Return each notebook's seconds from pytest's report; refuse unseen cells."""
    seconds: dict[str, float] = defaultdict(float)
    cells: dict[str, int] = defaultdict(int)
    for case in ElementTree.parse(report).iter("testcase"):
        notebook = case.attrib["classname"]
        seconds[notebook] += float(case.attrib["time"])
        cells[notebook] += case.find("skipped") is None
    names = {path: f"{path.stem}.{path.name}" for path in paths}
    for path, name in names.items():
        there = len(code_cells(load(path)))
        if cells[name] != there:
            raise Refused(f"{path.name}: nbval checked {cells[name]} of {there} cells")
    return {path.name: seconds[name] for path, name in names.items()}


def build_book(root: Path) -> Path:
    """Build the book in `root` from nothing, every warning an error."""
    build = root / "_build"
    if build.exists():
        shutil.rmtree(build)
    tool = shutil.which("jupyter-book", path=sysconfig.get_path("scripts"))
    if tool is None:
        raise Refused("jupyter-book is not installed: use `make book` or `make test`")
    flags = ["-W", "-n", "--keep-going"]
    run_quietly([tool, "build", str(root), *flags], cwd=root, env=environment(root))
    return build / "html"


def book() -> None:
    """Build the book and say which page to open."""
    page = build_book(ROOT) / "index.html"
    print(f"The book is ready. Open {page.as_uri()}", flush=True)


def site() -> None:
    """Check every link, anchor and image of the built pages."""
    from site_rules import site_faults

    faults = site_faults(ROOT / "_build" / "html")
    if faults:
        raise Refused("\n".join(faults))


def peers() -> None:
    """Compare with other libraries, number by number."""
    types = "--jaxtyping-packages=rl_notes,beartype.beartype"
    run([*PYTEST, types, "tests/peers"], env=environment(built_site()))


def portability() -> None:
    """Run nbval as other processors and thread counts would compute."""
    failed = 0
    table = []
    for settings in PORTABILITY:
        name = " ".join(f"{key}={value}" for key, value in settings.items())
        print(f"-- {name or 'as in make test'}", flush=True)
        try:
            spent = sum(run_nbval(book_notebooks(), settings).values())
            table.append(f"passed {spent:8.1f} s  {name or 'as in make test'}")
        except Refused:
            failed += 1
            table.append(f"FAILED             {name or 'as in make test'}")
    print("\n".join(["", *table]), flush=True)
    if failed:
        raise Refused(f"{failed} of {len(PORTABILITY)} settings failed")


def notebooks_gpu() -> None:
    """Execute every notebook on CUDA: the asserts hold, the outputs may differ.

    Several at a time, where there are cores for it: the seconds say how long each took
    beside the others.
    """
    import torch
    from run_notebooks import CellFailed, run_cells

    if not torch.cuda.is_available():
        raise Refused("PyTorch sees no CUDA device here; `make nbval` takes the CPU")
    failed = []

    def executed(path: Path) -> None:
        start = time.monotonic()
        try:
            run_cells(path, {"RL_NOTES_DEVICE": "cuda"})
            print(f"{time.monotonic() - start:8.1f} s  {path.name}", flush=True)
        except CellFailed as failure:
            failed.append(str(failure))

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as pool:
        list(pool.map(executed, book_notebooks()))
    if failed:
        raise Refused("\n".join(failed))


STAGES: dict[str, Callable[[], None]] = {
    stage.__name__: stage
    for stage in (
        *(check, unit, notebooks, book, site, peers),
        *(portability, notebooks_gpu),
    )
}


def main(names: Sequence[str]) -> int:
    """Run the named stages in order, stop at the first fault, and print the times."""
    times = []
    for name in names:
        print(f"== {name}: {(STAGES[name].__doc__ or '').splitlines()[0]}", flush=True)
        start = time.monotonic()
        try:
            STAGES[name]()
        except Refused as fault:
            print(f"\nThe gate refuses at stage `{name}`:\n{fault}", file=sys.stderr)
            return 1
        times.append(f"{time.monotonic() - start:8.1f} s  {name}")
    if len(names) > 1:
        print("\n".join(["== All stages passed.", *times]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
