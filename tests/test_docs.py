"""README and documentation name only what exists: paths, modules, links, commands and settings."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
RUNBOOKS = [ROOT / "cluster" / "README.md", ROOT / "k8s" / "README.md"]
# pages that docs/hooks/ make when the site is built
GENERATED = {DOCS / "reference" / "settings.md", DOCS / "demo.md", DOCS / "cluster/README.md", DOCS / "k8s/README.md"}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?<![\w/.-])(?:groundray|tests|sweeps|cluster|k8s|docs)/[\w./-]*")
MODULE = re.compile(r"(?<![\w/.-])groundray(?:\.(?!py\b)[A-Za-z_]\w*)+")
SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"(?:python -m groundray\.(\w+)|(?<![\w./-])groundray (train|prepare|analyse|baseline|sweep|serve|search|bench)"
    r"|python (sweeps/\w+)\.py)((?: [^&|;]*)?)"
)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=named)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_path_of_the_repository_exists(page: Path) -> None:
    text = LINK.sub("", page.read_text())
    paths = {path.rstrip(".") for path in PATH.findall(text) if not path.endswith("/NAME.py")}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_every_module_and_name_of_the_package_exists(page: Path) -> None:
    # a file of an export, a key of Parquet metadata, tags of MLflow
    others = {"groundray.json", "groundray.id", "groundray.checksums", "groundray.run_id", "groundray.logged"}
    names = set(MODULE.findall(page.read_text())) - others
    assert [name for name in sorted(names) if not exists(name)] == []


def exists(name: str) -> bool:
    """True for a module of groundray, and for what one holds."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:end])
        if module.is_dir() or module.with_suffix(".py").is_file():
            found = importlib.import_module(".".join(parts[:end])) if parts[end:] else None
            for part in parts[end:]:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def reference() -> ModuleType:
    """Import the hook that generates the settings page."""
    spec = importlib.util.spec_from_file_location("settings_reference", DOCS / "hooks" / "settings_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Every setting's dotted name and description."""
    return dict(reference().descriptions())


@pytest.mark.parametrize("page", [*PAGES, *RUNBOOKS], ids=named)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", page.read_text())) if ":" not in link]
    targets = [(page.parent / link).resolve() for link in links if link]
    assert [str(target) for target in targets if target not in GENERATED and not target.exists()] == []


def test_every_setting_exists(page: Path, settings: dict[str, str]) -> None:
    sections = {name.partition(".")[0] for name in settings}
    dotted = re.findall(rf"`(?:--)?((?:{'|'.join(sections)})\.[a-z_.]+)[^`]*`", page.read_text())
    unknown = [name for name in dotted if not any(f"{known}.".startswith(f"{name}.") for known in settings)]
    assert [name for name in unknown if not name.endswith((".csv", ".json"))] == []


def test_every_top_level_name_is_in_the_readme() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    readme = (ROOT / "README.md").read_text()
    names = {path.split("/")[0] for path in tracked.splitlines()} - {"README.md"}
    assert [name for name in sorted(names) if f"`{name}" not in readme] == []


def commands() -> Iterator[tuple[Path, str]]:
    """Yield each page with each line of its sh blocks that has a command of groundray."""
    for page in [*PAGES, *RUNBOOKS]:
        for language, block in FENCE.findall(page.read_text()):
            if language == "sh":
                for line in block.replace("\\\n", " ").splitlines():
                    if COMMAND.search(line.partition(" #")[0]):
                        yield page, " ".join(line.partition(" #")[0].split())


@pytest.mark.parametrize("line", [pytest.param(line, id=f"{named(page)}-{line}") for page, line in commands()])
def test_every_command_line_parses(line: str) -> None:
    for module, short, sweep, rest in COMMAND.findall(line):
        argv = shlex.split(rest.partition(" > ")[0])
        if "..." in argv:  # the rest is left to the reader
            continue
        if "--help" not in argv:
            parse(module or short or "sweep", argv, bool(sweep))


def parse(command: str, argv: list[str], scripted: bool) -> None:
    """Parse a command line as the command does, and no more.

    Raises:
        SystemExit, SettingsError: an option or a setting is not known, or a value is not possible.
    """
    from groundray import config

    module = importlib.import_module(f"groundray.{command}")
    if command == "sweep":
        script = module.Defaults(space=("grounding.temperature=choice:0.1,1",), metric="grounding/loss")
        parser = module.build_parser(script if scripted else module.Defaults())
        options, settings = parser.parse_known_args(argv)
        config.load(options.config or "demo", settings)
        return
    if command != "train":
        module.build_parser().parse_args(argv)
        return
    options, settings = module.build_parser().parse_known_args(argv)
    config.load("photos" if options.config.endswith(".yaml") else options.config, settings)


def test_every_python_block_compiles_and_imports_what_exists(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text()):
        if language != "python":
            continue
        source = SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(), block)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "groundray":
                missing = [name.name for name in node.names if not exists(f"{node.module}.{name.name}")]
                assert missing == [], node.module


@pytest.mark.parametrize("example", sorted((DOCS / "examples").glob("*.py")), ids=named)
def test_every_example_is_shown_on_a_page(example: Path) -> None:
    assert [page for page in PAGES if named(example) in SNIPPET.findall(page.read_text())]


def test_every_page_begins_with_whom_it_is_for(page: Path) -> None:
    if page.is_relative_to(DOCS):
        title, _, rest = page.read_text().partition("\n\n")
        assert title.startswith("# ")
        assert rest.startswith("For ")


def test_the_settings_page_lists_every_setting_with_its_meaning(settings: dict[str, str]) -> None:
    from groundray import config

    assert [name for name, description in settings.items() if not description] == []
    demo = {name for name, _ in config.flatten(config.load("demo").model_dump(mode="json"))}
    assert sorted(demo - settings.keys()) == []
    page = reference().page()
    assert [name for name in settings if f"`{name}`" not in page] == []
