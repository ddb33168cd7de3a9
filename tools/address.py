"""Move the repository to another address, in every file that names it.

    make address NEW=https://github.com/somebody/their-notes

The address that `_config.yml` gives is replaced wherever it stands: in the README, in
the set-up cells of the notebooks, in the package's and the citation's data. Stored
outputs and everything else stay as they are, to the byte.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORM = re.compile(r"https://[\w.-]+/([\w.-]+)/([\w.-]*\w)")


def address_in(root: Path) -> str:
    """The address as it is."""
    text = (root / "_config.yml").read_text(encoding="utf-8")
    found = re.search(r"^ *url: *(https://\S+)$", text, re.MULTILINE)
    if found is None:
        raise SystemExit(
            "_config.yml gives no address of the repository: url: https://..."
        )
    return found[1]


def move(root: Path, new: str) -> list[str]:
    """Replace it in the files that git knows; return their names."""
    new = new.removesuffix("/").removesuffix(".git")
    if not FORM.fullmatch(new):
        raise SystemExit(
            f"NEW={new} is no address of a repository. It looks like this: "
            "make address NEW=https://github.com/somebody/their-notes"
        )
    old = address_in(root)
    # Not an address that only begins like the old one.
    whole = re.compile(re.escape(old) + r"(?![\w-]|\.(?!git\b)\w)")
    known = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True
    )
    changed = []
    for name in known.stdout.decode().split("\0"):
        path = root / name
        if not name or not path.is_file():
            continue
        before = path.read_bytes()
        try:
            after = whole.sub(new, before.decode()).encode()
        except UnicodeDecodeError:  # a picture, or weights
            continue
        if after != before:
            path.write_bytes(after)
            changed.append(name)
    return changed


if __name__ == "__main__":
    moved = move(ROOT, *(sys.argv[1:] or [""]))
    print(f"Changed {len(moved)} files:", *moved, sep="\n  ")
