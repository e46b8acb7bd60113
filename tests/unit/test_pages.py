"""What the pages name exists: the targets of links, headings, scripts, modules, options, make targets and variables."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mplug_triton.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not {".venv", "build", "runs", ".pytest_cache"} & set(page.relative_to(ROOT).parts)
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`([^`\n]+)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
#: What ends a command: a pipe, the next command, a comment.
_END = re.compile(r"\s(?:\||&&|;|#|\d?>)\s?")

#: Prints the --help of scripts and modules, all in one process, so that PyTorch is imported once.
_PRINT_HELP = """
import contextlib, io, json, runpy, sys
helps = {}
for words in json.loads(sys.argv[1]):
    sys.argv = [*words, "--help"]
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    helps[" ".join(words)] = stream.getvalue()
print(json.dumps(helps))
"""


def commands(page: Path) -> Iterator[str]:
    """Yield every line of shell that a page shows, in a block or within a sentence."""
    text = page.read_text()
    for language, block in _FENCE.findall(text):
        if language in ("", "sh", "bash"):
            yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from _INLINE.findall(_FENCE.sub("", text))


def programs(command: str) -> Iterator[tuple[list[str], str]]:
    """Yield the Python programs of a line, each as words (script or module, subcommand), and what follows it."""
    for found in re.finditer(r"(?:^|\s)mplug ([a-z]+)\b(.*)", command):  # the command of the package
        if found[1] in COMMANDS:
            yield [COMMANDS[found[1]].program], _END.split(found[2] + " ", maxsplit=1)[0]
    for found in re.finditer(r"(?:^|[\s/(])(?:python|torchrun(?: --nproc-per-node \w+)?) (-m )?([\w./]+)(.*)", command):
        rest = _END.split(found[3] + " ", maxsplit=1)[0]
        if not ((found[1] and (ROOT / found[2].split(".")[0]).is_dir()) or found[2].endswith(".py")):
            continue  # not ours
        words = [found[2]]
        if following := re.match(r" ([a-z]+)\b", rest):
            words.append(following[1])
        # The server's --run takes a program of ours, whose options follow.
        yield words, rest
        if inner := re.search(r"--run (\S+\.py)", rest):
            yield [inner[1]], rest


def path_of(program: str) -> Path:
    """Return the file of a script or module."""
    if program.endswith(".py"):
        return ROOT / program
    folder = ROOT / program.replace(".", "/")
    return folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")


@cache
def helps() -> dict[str, str]:
    """Return the --help of every program of every page, those of subcommands appended."""
    named = {words[0] for page in PAGES for command in commands(page) for words, _ in programs(command)}
    wanted = sorted([name] for name in named if path_of(name).exists()) + [
        ["clients/retrieve.py", subcommand] for subcommand in ("index", "search")
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_HELP, json.dumps(wanted)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, str] = {}
    for words, text in json.loads(done.stdout).items():
        name = words.split()[0]
        printed[name] = printed.get(name, "") + text
    return printed


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert anchor in map(slug, headings), f"{page.name}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    for command in commands(page):
        for words, rest in programs(command):
            name = words[0]
            assert path_of(name).exists(), f"{page.name}: {command}"
            known = "".join(helps()[each[0]] for each, _ in programs(command))
            for option in _OPTION.findall(rest):
                assert re.search(rf"{option}\b(?!-)", known), f"{page.name}: {name} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_and_their_variables_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    variables = set(re.findall(r"^([A-Z_]+) *\?=", makefile, re.M)) | set(re.findall(r"\$\(([A-Z_]+)\)", makefile))
    for command in commands(page):
        if found := re.match(r"make ([a-z-]+)(.*)", command):
            assert found[1] in targets, f"{page.name}: {command}"
            for word in shlex.split(found[2], comments=True):
                variable = re.match(r"([A-Z_]+)=", word)
                assert variable is None or variable[1] in variables, f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    """Paths in backticks that begin with a folder of the repository; `*` and `…` stand for any name."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("build", "runs"))
    for path in re.findall(rf"`((?:{folders})/[^`\s{{}}<>]*)`", _FENCE.sub("", page.read_text())):
        if not re.search(r"NAME|alike", path):  # those of the recipes in CONTRIBUTING.md
            assert list(ROOT.glob(path.replace("…", "*").rstrip("/"))), f"{page.name}: {path}"


def test_programs_are_recognised() -> None:
    """The other tests would hold of pages in which no command is found."""
    found = [words for page in PAGES for command in commands(page) for words, _ in programs(command)]
    assert {"builders/build.py", "mplug.server", "clients/retrieve.py", "builders/train/finetune.py"} <= {
        words[0] for words in found
    }
    line = "python -m mplug.server build/demo --run builders/evaluate.py --url {grpc}   # all --tasks"
    assert [words[0] for words, _ in programs(line)] == ["mplug.server", "builders/evaluate.py"]
    assert "--tasks" not in next(programs(line))[1]
    assert "--target" in helps()["builders/build.py"] and "--html" in helps()["clients/retrieve.py"]
