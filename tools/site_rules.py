"""What must hold in the built site, read from its files alone.

    python tools/site_rules.py _build/html

Every internal link, anchor, image, script and stylesheet exists; no id stands twice on
a page; every image has an alt text; and no page asks another host for anything. A link
that a reader follows (`<a href>`) may lead anywhere.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

# Attributes that a browser fetches by itself, by element.
FETCHED = {
    "script": ["src"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "track": ["src"],
    "iframe": ["src"],
    "embed": ["src"],
    "object": ["data"],
    "input": ["src"],
    "image": ["href", "xlink:href"],
    "use": ["href", "xlink:href"],
}
# A <link> with one of these only names a place; every other <link> is fetched.
NAMES_ONLY = set("author canonical help index license next prev search".split())
CSS_URL = re.compile(
    r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^)"'\s]+))\s*\)|@import\s+["']([^"']+)["']""",
    re.IGNORECASE,
)
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# A script loads by assigning an address or by calling one of these with it. A link
# (href=) in a text that it writes is only a link.
SCRIPT_LOAD = re.compile(
    r"""(?:(?:\bsrc|\.href|\.action)\s*=\s*"""
    r"""|\b(?:import|from)\s*"""
    r"""|\b(?:fetch|import|importScripts|require|open|sendBeacon|Worker|SharedWorker"""
    r"""|WebSocket|EventSource|Request|setAttribute|load|getScript)"""
    r"""\s*\(\s*(?:["'`][\w-]+["'`]\s*,\s*)?)"""
    r"""["'`]((?:https?:|wss?:)?//[^"'`\s]+)""",
    re.IGNORECASE,
)


def site_faults(folder: Path) -> list[str]:
    """Everything wrong with the site in `folder`, as sentences "page: fault"."""
    folder = Path(folder).resolve()
    pages = {path: _read_page(path) for path in _page_files(folder)}
    if not pages:
        raise ValueError(f"{folder} holds no .html file; build the book first.")
    anchors = {path: _anchors(page) for path, page in pages.items()}
    faults = [
        f"{path.relative_to(folder).as_posix()}: {fault}"
        for path, page in pages.items()
        for fault in (
            *_link_faults(path, page, anchors, folder),
            *_resource_faults(path, page, folder),
            *_image_faults(page),
            *_duplicate_ids(page),
            *_script_faults(page),
        )
    ]
    for path in sorted(folder.rglob("*.css")):
        name = path.relative_to(folder).as_posix()
        text = path.read_text(encoding="utf-8")
        faults += [f"{name}: {f}" for f in _css_faults(path, text, folder)]
    for path in _page_scripts(pages, folder):
        name = path.relative_to(folder).as_posix()
        text = path.read_text(encoding="utf-8")
        faults += [f"{name}: {fault}" for fault in _loads_in_script(text)]
    return faults


def linked_hosts(folder: Path) -> Counter[str]:
    """Count the other hosts that readers are sent to by ordinary links."""
    addresses = (
        str(link["href"])
        for path in _page_files(Path(folder))
        for link in _read_page(path).find_all("a", href=True)
    )
    return Counter(
        urlsplit(address).netloc
        for address in addresses
        if is_foreign(address) and urlsplit(address).netloc
    )


def is_foreign(address: str) -> bool:
    """Whether the address leads to another host (`//host/x` does too)."""
    parts = urlsplit(address.strip())
    return bool(parts.netloc) or parts.scheme in {"http", "https", "ws", "wss", "ftp"}


def is_local(address: str) -> bool:
    """Whether the address names a file of the site or an anchor."""
    return not is_foreign(address) and not urlsplit(address.strip()).scheme


def _page_files(folder: Path) -> list[Path]:
    """List the pages; the theme leaves its templates in _static as .html, too."""
    found = sorted(folder.rglob("*.html"))
    return [path for path in found if "_static" not in path.relative_to(folder).parts]


def _read_page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def _anchors(page: BeautifulSoup) -> set[str]:
    named = {str(tag["name"]) for tag in page.find_all("a", attrs={"name": True})}
    return named | {str(tag["id"]) for tag in page.find_all(id=True)}


def _target(path: Path, address: str, folder: Path) -> Path:
    """Turn a local address on the page at `path` into the file that it names."""
    name = unquote(urlsplit(address.strip()).path)
    if not name:
        return path
    start = folder if name.startswith("/") else path.parent
    target = (start / name.lstrip("/")).resolve()
    return target / "index.html" if target.is_dir() else target


def _exists(target: Path, folder: Path) -> bool:
    """Whether the file is in the site, in exactly this spelling of its name.

    macOS and Windows find `Maze.html` under the name `maze.html`, web servers do not.
    """
    if not target.is_relative_to(folder) or not target.is_file():
        return False
    return target.name in {entry.name for entry in target.parent.iterdir()}


def _link_faults(
    path: Path, page: BeautifulSoup, anchors: dict[Path, set[str]], folder: Path
) -> Iterator[str]:
    for link in page.find_all(["a", "area"], href=True):
        address = str(link["href"])
        if not is_local(address):
            continue
        target = _target(path, address, folder)
        anchor = unquote(urlsplit(address.strip()).fragment)
        if not _exists(target, folder):
            yield f"the link {address!r} leads to no file."
        elif anchor and target in anchors and anchor not in {*anchors[target], "top"}:
            yield f"the link {address!r} leads to no anchor."


def _fetched(page: BeautifulSoup) -> Iterator[tuple[Tag, str]]:
    """Every (element, address) that a browser fetches without being asked."""
    for tag in page.find_all(FETCHED):
        for name in FETCHED[tag.name]:
            if not tag.has_attr(name):
                continue
            for address in _addresses(name, str(tag[name])):
                yield tag, address
    for tag in page.find_all("link", href=True):
        kinds = {str(kind).lower() for kind in tag.get("rel") or []}
        if not kinds <= NAMES_ONLY:
            yield tag, str(tag["href"])
    for tag in page.find_all("meta", content=True):
        content = str(tag["content"])
        refresh = re.search(r"url\s*=\s*['\"]?([^'\"]+)", content, re.IGNORECASE)
        if str(tag.get("http-equiv", "")).lower() == "refresh" and refresh:
            yield tag, refresh[1]
    for tag in page.find_all("base", href=True):
        yield tag, str(tag["href"])


def _addresses(attribute: str, value: str) -> list[str]:
    if attribute != "srcset":
        return [value]
    return [part.split()[0] for part in value.split(",") if part.split()]


def _resource_faults(path: Path, page: BeautifulSoup, folder: Path) -> Iterator[str]:
    for tag, address in _fetched(page):
        if is_foreign(address):
            yield f"<{tag.name}> loads {address!r} from another host."
        elif is_local(address) and not _is_present(path, address, folder):
            yield f"<{tag.name}> loads {address!r}, which does not exist."
    for form in page.find_all("form", action=True):
        action = str(form["action"])
        if is_foreign(action):
            yield f"<form> sends to {action!r}, another host."
    css = [tag.get_text() for tag in page.find_all("style")]
    css += [str(tag["style"]) for tag in page.find_all(style=True)]
    for text in css:
        yield from _css_faults(path, text, folder)


def _is_present(path: Path, address: str, folder: Path) -> bool:
    anchor_only = address.strip().startswith("#")
    return anchor_only or _exists(_target(path, address, folder), folder)


def _css_faults(path: Path, text: str, folder: Path) -> Iterator[str]:
    for groups in CSS_URL.findall(CSS_COMMENT.sub("", text)):
        address = "".join(groups)
        if is_foreign(address):
            yield f"the style loads {address!r} from another host."
        elif is_local(address) and not _is_present(path, address, folder):
            yield f"the style loads {address!r}, which does not exist."


def _image_faults(page: BeautifulSoup) -> Iterator[str]:
    for image in page.find_all("img"):
        alt = str(image.get("alt", "")).strip()
        source = str(image.get("src", ""))
        # Sphinx writes the name of the file where it was given no alt text.
        if not alt or Path(alt).name == Path(source).name:
            yield f"the image {source[:80]!r} has no alt text."


def _duplicate_ids(page: BeautifulSoup) -> Iterator[str]:
    counts = Counter(tag["id"] for tag in page.find_all(id=True))
    for name, count in counts.items():
        if count > 1:
            yield f"the id {name!r} stands {count} times."


def _script_faults(page: BeautifulSoup) -> Iterator[str]:
    for script in page.find_all("script", src=False):
        yield from _loads_in_script(script.get_text())
    for tag in page.find_all(True):
        for name, value in tag.attrs.items():
            if name.startswith("on"):
                yield from _loads_in_script(str(value))


def _loads_in_script(text: str) -> Iterator[str]:
    for address in SCRIPT_LOAD.findall(text):
        yield f"a script loads {address!r} from another host."


def _page_scripts(pages: dict[Path, BeautifulSoup], folder: Path) -> list[Path]:
    """List the script files that some page runs."""
    return sorted(
        {
            target
            for path, page in pages.items()
            for script in page.find_all("script", src=True)
            if is_local(str(script["src"]))
            and _exists(target := _target(path, str(script["src"]), folder), folder)
        }
    )


def main(folder: str) -> int:
    """Print the faults and the hosts that links lead to; 1 if there is a fault."""
    faults = site_faults(Path(folder))
    print("\n".join(faults) or "No fault found.")
    hosts = ", ".join(f"{host} ({n})" for host, n in linked_hosts(Path(folder)).items())
    print(f"Links lead to: {hosts or 'no other host'}.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
