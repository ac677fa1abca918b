"""Checks the language and the links of the Markdown pages: README, CONTRIBUTING, docs/ and others.

    python .ci/words.py             every page of the repository; exit code 1 if one has a fault
    python .ci/words.py --means     also prints the mean sentence length of every page

A page fails if

- its sentences have more than 20 words on average. Sentences stand in paragraphs, lists and
  quotations; headings, tables, code blocks and HTML do not count. Inline code is one word;
- it has a word of `WORDS` in the sense given there, anywhere but in code;
- a line of text is longer than 110 characters. Tables, code and the address of a link do not count;
- a relative link, or the heading that it names, does not exist;
- it mentions a file such as gad_jax/train.py, or a command such as python -m gad_jax.train, that
  does not exist.

No page is exempt. Standard library only.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST_MEAN = 20  # words
LONGEST_LINE = 110  # characters

# What a reader stumbles over, and what to write. Each pattern knows the sense that is meant: user
# turns, a product that is sold and an asterisk beside nothing else are left alone.
WORDS = {
    r"\bbeside\b": "next to, alongside, together with",
    r"\b(go|goes|going|went) on\b": "resume, continue",
    r"\bask(s|ed|ing)?( for)? (it )?again\b": "retried",
    r"\bturns of (a|the|its|this)\b|\bloops? turns?\b": "iterations",
    r"\bmatrix products?\b|\bproducts? of (a |the )?matri(x|ces)\b|\bthe best product\b": "matmuls",
    r"\blost (a |its |the )?(scores?|pairs?)\b|\b(scores?|pairs?) (are|is|were|was) lost\b": (
        "non-finite, dropped"
    ),
    r"\b(more|less|much|no|of|as|the|leaves?) air\b|\bempty positions?\b": "padding",
    r"\bby (the|its) mathematics\b": "analytic FLOPs",
    r"\b(is|are|was|were) not (here|there)\b": "you do not have, missing",
    r"\b(is|are|be|too|so|very|how) dear\b|\bdearer\b": "expensive",
    r"\bcaches? of (the )?prompts?\b": "prompt KV cache",
    r"\b(cache|context|KV) columns?\b|\bcolumns of (a|the|its) (cache|ring)s?\b": "context length",
    r"\bright about\b": "D accuracy",
    r"\bbodies\b|\b(broken|short|response|request) body\b": "requests, responses",
    r"\breturns what applies\b": "`jax.shard_map` over the data axes",
    r"\b(sits?|sat|sitting) out\b": "paused",
    r"(?<!are )(?<!is )\ball the same\b|\bas (it lies|they lie)\b": "say it plainly",
}
FILE = re.compile(
    r"(?<![\w./-])(?:gad_jax|tests|configs|launch|benchmarks|docs|\.ci|\.github)/[\w./-]*"
    r"\.(?:py|ya?ml|sh|md|png|svg|jsonl|toml|txt|jinja)\b"
)
COMMAND = re.compile(r"python -m ((?:gad_jax|tests|benchmarks)(?:\.\w+)*)")
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|(?:src|href)="([^"]+)"|^\s*\[[^\]]+\]:\s+(\S+)""")


def main() -> int:
    """Prints the faults of all pages, as PAGE:LINE: FAULT; returns 1 if there are any."""
    count = 0
    for page in pages():
        name = page.relative_to(ROOT)
        text = page.read_text(encoding="utf-8")
        words, sentences = length(text)
        mean = words / max(sentences, 1)
        if "--means" in sys.argv[1:]:
            print(f"{name}: {mean:.1f} words in each of {sentences} sentences")
        found = list(faults(page, text))
        if mean > LONGEST_MEAN:
            found.append((1, f"{mean:.1f} words a sentence; {LONGEST_MEAN} is the limit"))
        for line, fault in found:
            print(f"{name}:{line}: {fault}")
        count += len(found)
    print(f"words and links: {count} faults" if count else "words and links: no fault")
    return 1 if count else 0


def pages() -> list[Path]:
    """The Markdown pages, without hidden folders and what a run or a build writes."""
    skipped = {"runs", "site", "build", "dist", "node_modules"}
    found = ROOT.rglob("*.md")
    parts = ((page, page.relative_to(ROOT).parts) for page in found)
    return sorted(p for p, names in parts if not any(n in skipped or n[0] == "." for n in names))


def faults(page: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the sentence of each fault but that of the mean."""
    for number, line, is_code in lines(text):
        yield from ((number, fault) for fault in missing_files(line))
        if is_code:
            continue
        yield from ((number, fault) for fault in broken_links(page, line))
        prose = plain(line)
        for pattern, better in WORDS.items():
            if match := re.search(pattern, prose, re.IGNORECASE):
                yield number, f"{match[0]!r}: write {better}"
        shown = re.sub(r"\]\([^)]*\)|<[^>]*>", "", line)
        if len(shown) > LONGEST_LINE and not line.lstrip().startswith("|"):
            yield number, f"{len(shown)} characters; {LONGEST_LINE} is the limit"


def lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yields number, text and whether it is code (a fence, a comment or four spaces) of a line."""
    fence, comment, before = "", False, ""
    for number, line in enumerate(text.splitlines(), 1):
        opening = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence or opening:
            is_code = True
            if not fence and opening:
                fence = opening[1]
            elif line.strip() == fence:
                fence = ""
        else:
            comment = comment or "<!--" in line
            # four spaces after an empty line; in a list they continue an item
            is_code = comment or (line.startswith("    ") and not before.strip())
            comment = comment and "-->" not in line
        yield number, line, is_code
        before = before if is_code and not fence else line


def plain(line: str) -> str:
    """The line as it is read: links are their text, inline code is one word."""
    line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)
    line = re.sub(r"(`+).+?\1", "code", line)
    return re.sub(r"<[^>]*>|[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}", "", line)


def length(text: str) -> tuple[int, int]:
    """The number of words and of sentences in paragraphs, lists and quotations."""
    blocks, current = list[str](), list[str]()
    for _, line, is_code in lines(text):
        stripped = line.strip()
        if stripped.startswith(("#", "|", "!!!", "???")) or is_code or not stripped:
            stripped = ""
        item = re.match(r"([-*+>]|\d+\.)\s+", stripped)
        if not stripped or item:
            blocks.append(" ".join(current))
            current = []
        current.append(plain(stripped[item.end() :] if item else stripped))
    blocks.append(" ".join(current))
    words = sentences = 0
    for block in blocks:
        for sentence in re.split(r"(?<=[.!?])[)\"'”]*\s+(?=[\"'“(]*[A-Z0-9]|code\b)", block):
            count = len(re.findall(r"[^\s]*\w[^\s]*", sentence))
            words += count
            sentences += count > 0
    return words, sentences


def broken_links(page: Path, line: str) -> Iterator[str]:
    """Yields what is wrong with the relative links of a line."""
    for groups in LINK.findall(re.sub(r"(`+).+?\1", "", line)):
        target = "".join(groups)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        if workflow := re.match(r"\.\./\.\./actions/workflows/([\w.]+)", path):
            # GitHub's own page of a workflow, as seen from README.md
            path = f".github/workflows/{workflow[1]}"
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            yield f"{target}: no such file"
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            yield f"{target}: {place.name} has no such heading"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    found = set[str]()
    for _, line, is_code in lines(page.read_text(encoding="utf-8")):
        if not is_code and (heading := re.match(r"#+\s+(.*)", line)):
            text = re.sub(r"[^\w\s-]", "", heading[1].lower()).strip()
            found.add(re.sub(r"\s", "-", text))
    return found


def missing_files(line: str) -> Iterator[str]:
    """Yields the files and modules that a line mentions and the repository lacks."""
    for name in FILE.findall(line):
        if not (ROOT / name).exists():
            yield f"{name}: no such file"
    for module in COMMAND.findall(line):
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            yield f"python -m {module}: no such command"


if __name__ == "__main__":
    sys.exit(main())
