"""What is wrong with a page of the report or a Markdown file, as sentences; made with the standard library only."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "object": "data",
           "embed": "src", "audio": "src", "video": "src", "image": "href", "use": "href"}  # fmt: skip
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//|^https?:", re.IGNORECASE)
FETCHING_STYLE = re.compile(r"@import|url\(\s*['\"]?(?!data:|#)", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|tmp|home|root|Users|mnt|private)/[\w.-]")
MARKDOWN_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


class Page(HTMLParser):
    """Every tag with its attributes, the ids, and the text of styles and of everything else."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.style = ""
        self._in_style = False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag):
        self._in_style = False

    def handle_data(self, data):
        if self._in_style:
            self.style += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if attributes.get("id")]


def faults_of_page(source: str, path: Path) -> list[str]:
    """Everything this project asks of a page; `path` is where it lies, for its relative links."""
    page = Page(source)
    checks = (_structure, _images, _fetches, _styles)
    faults = [fault for check in checks for fault in check(page)]
    faults += [f"id {id!r} occurs {count} times" for id, count in Counter(page.ids).items() if count > 1]
    faults += [f"a path of a machine: {found[0]}" for found in [MACHINE_PATH.search(source)] if found]
    links = [attributes["href"] or "" for attributes in page.named("a") if "href" in attributes]
    return faults + faults_of_links(links, path, set(page.ids))


def _structure(page: Page) -> list[str]:
    (html, *_) = page.named("html") or [{}]
    faults = [] if html.get("lang") else ["html has no lang"]
    headings = len(page.named("h1"))
    faults += [] if headings == 1 else [f"{headings} h1 headings"]
    faults += [] if page.named("title") else ["no title"]
    bare = sum("scope" not in attributes for attributes in page.named("th"))
    return faults + ([f"{bare} table headers without scope"] if bare else [])


def _images(page: Page) -> list[str]:
    plain = [a for a in page.named("img") if not (a.get("alt") or "").strip()]
    plots = [a for a in page.named("svg") if not (a.get("aria-label") or a.get("aria-hidden"))]
    return [f"{len(found)} {what} without text" for found, what in ((plain, "img"), (plots, "svg")) if found]


def _fetches(page: Page) -> list[str]:
    faults = [f"<{tag}> is not allowed" for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed")]
    for tag, attributes in page.tags:
        source = attributes.get(FETCHED.get(tag, ""))
        if source and ELSEWHERE.match(source):
            faults.append(f"<{tag}> fetches {source[:80]}")
        faults += [f"<{tag}> has the script {name}" for name in attributes if name.startswith("on")]
    return faults


def _styles(page: Page) -> list[str]:
    inline = " ".join(attributes.get("style") or "" for _, attributes in page.tags)
    return ["a style fetches something"] if FETCHING_STYLE.search(page.style + inline) else []


def faults_of_markdown(path: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere, and paths of machines."""
    source = path.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", source, flags=re.DOTALL)
    # Code inside a link's text is dropped with the other code, so the brackets may be empty by now.
    links = [first or second for first, second in MARKDOWN_LINK.findall(prose)]
    faults = [f"a path of a machine: {found[0]}" for found in [MACHINE_PATH.search(source)] if found]
    return faults + faults_of_links(links, path, anchors_of_markdown(source))


def anchors_of_markdown(source: str) -> set[str]:
    """Anchors that headings get on the usual hosts: lower case, punctuation dropped, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", source, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults_of_links(links: list[str], path: Path, own: set[str]) -> list[str]:
    """Relative links to files or anchors that do not exist; links elsewhere are not followed."""
    faults = []
    for link in dict.fromkeys(links):
        if ELSEWHERE.match(link) or link.startswith(("mailto:", "data:")):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = path.parent / file if file else path
        if file and not target.exists():
            faults.append(f"broken link {link}")
        elif anchor and not {anchor, link.partition("#")[2]} & set(own if not file else _anchors(target)):
            faults.append(f"link to a missing anchor {link}")
    return faults


def _anchors(target: Path) -> set[str]:
    source = target.read_text(encoding="utf-8")
    return set(Page(source).ids) if target.suffix == ".html" else anchors_of_markdown(source)
