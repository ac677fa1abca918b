"""What the site has besides docs/: a hook of MkDocs, named in mkdocs.yml.

- The reference: a page per public module of gad_jax/, from its docstrings and with its source.
- The pages of the repository's root that mkdocs.yml has in its navigation, such as CHANGELOG.md.
- Every other file that a page links to (configs/tiny.yaml, a test), highlighted.

In docs/ a link names a file of the repository, so it works on GitHub as well. Here it becomes a
link to that file's page. Pictures from docs/pictures/ are put into the page, so the links in them
work. MkDocs itself reports links to files that do not exist.
"""

import ast
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml"}
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
HREF = re.compile(r'(href=")([^"#:]+)(#[^"]*)?(")')
PICTURE = re.compile(r"!\[([^\]]*)\]\((pictures/[\w-]+\.svg)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference to the navigation: a section per folder of gad_jax/."""
    sections: dict[str, list[Any]] = {"gad_jax": []}
    for module in _modules():
        *folder, name = module.relative_to(ROOT / "gad_jax").with_suffix("").parts
        section = sections.setdefault(folder[0] if folder else "gad_jax", [])
        page = _page_of(module.relative_to(ROOT).as_posix())
        shown = ".".join([*folder[1:], name]).removesuffix(".__init__")
        shown = shown.replace("__main__", "command")
        # A page without a name is what the section's own name opens.
        section.append(page if shown == "__init__" else {shown: page})
    reference = [{name: pages} for name, pages in sections.items()]
    config.nav = [*(config.nav or []), {"Reference": reference}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    texts = {path: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
    for path in ROOT.glob("*.md"):
        if path.name != "README.md":
            texts[path] = path.read_text("utf-8")
            files.append(File.generated(config, path.name, content=texts[path]))
    for module in _modules():
        name = module.relative_to(ROOT)
        dotted = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        content = f"# {dotted}\n\n`{name}`\n\n::: {dotted}\n"
        if module.name == "__init__.py":
            content += _contents(module.parent)
        files.append(File.generated(config, _page_of(name.as_posix()), content=content))
    linked = {
        _target(path, match[2]) for path, text in texts.items() for match in LINK.finditer(text)
    }
    for name in sorted(linked):
        page = _page_of(name)
        if page.startswith("files/") and (ROOT / name).exists():
            file = File.generated(config, page, content=_listing(ROOT / name))
            file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at the site's pages, and puts the pictures into the page."""
    source = page.file.src_uri
    if source.startswith(("reference/", "files/")):
        return markdown
    origin = ROOT / ("docs" if (ROOT / "docs" / source).exists() else ".") / source

    def link(match: re.Match[str]) -> str:
        target = _page_of(_target(origin, match[2]))
        target = posixpath.relpath(target, posixpath.dirname(source) or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    def picture(match: re.Match[str]) -> str:
        def href(inner: re.Match[str]) -> str:
            target = _target(ROOT / "docs" / match[2], inner[2])
            file = files.get_file_from_path(_page_of(target))
            symbol = (inner[3] or "").rpartition(".")[2]
            defined = rf"(?m)^(def|class) {symbol}\b"
            if file is None or (symbol and not re.search(defined, (ROOT / target).read_text())):
                raise PluginError(f"docs/{match[2]}: nothing is at {inner[2]}{inner[3] or ''}")
            return f'href="{file.url_relative_to(page.file)}{inner[3] or ""}"'

        svg = (ROOT / "docs" / match[2]).read_text("utf-8")
        svg = re.sub(r"(?s)<!--.*?-->|<style>.*?</style>", "", svg)
        svg = re.sub(r"\n\s*\n", "\n", HREF.sub(href, svg))
        return f'<div class="picture" role="group" aria-label="{html.escape(match[1])}">{svg}</div>'

    return PICTURE.sub(picture, LINK.sub(link, markdown))


def on_page_content(markup: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets names in tables break after a dot, a slash or an underscore, for narrow screens."""
    del page, config, files

    def code(match: re.Match[str]) -> str:
        return re.sub(r"(?<=\w)([./_])(?=\w)", r"\1<wbr>", match[0])

    def cell(match: re.Match[str]) -> str:
        return re.sub(r"<code>[^<]*</code>", code, match[0])

    return re.sub(r"(?s)<td[ >].*?</td>", cell, markup)


def _modules() -> list[Path]:
    """The modules of gad_jax/ whose names are public, and the commands' `__main__`."""
    found = sorted((ROOT / "gad_jax").rglob("*.py"))
    public = ("__init__.py", "__main__.py")
    return [path for path in found if path.name in public or not path.name.startswith("_")]


def _contents(folder: Path) -> str:
    """A table of a folder's modules, each with the first sentence of its docstring."""
    rows = ""
    for module in _modules():
        if module.parent == folder and module.name != "__init__.py":
            text = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
            first = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
            rows += f"| [{module.stem}]({module.stem}.md) | {first} |\n"
    return f"\n| module | what lives there |\n|---|---|\n{rows}" if rows else ""


def _target(page: Path, link: str) -> str:
    """The file of the repository that a page's link names, as a path from the root."""
    return posixpath.normpath((page.parent / link).resolve().relative_to(ROOT).as_posix())


def _page_of(name: str) -> str:
    """The site's page that shows a file or folder of the repository, as a path from docs/."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.startswith("gad_jax/") and (ROOT / name / "__init__.py").exists():
        name += "/__init__.py"
    elif name.startswith("gad_jax/") and (ROOT / f"{name}.py").exists():
        name += ".py"
    if name.startswith("gad_jax/") and name.endswith(".py"):
        return "reference/" + re.sub(r"__init__\.py$", "index.py", name[8:])[:-3] + ".md"
    if name == "README.md":
        return "index.md"
    return name if "/" not in name and name.endswith(".md") else f"files/{name}.md"


def _listing(path: Path) -> str:
    """A page that shows a file, or the names in a folder."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        names = "".join(f"- `{name}/{inner.name}`\n" for inner in sorted(path.iterdir()))
        return f"# {name}/\n\n{names}"
    return (
        f"# {name}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text('utf-8')}\n````\n"
    )
