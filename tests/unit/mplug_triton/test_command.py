"""The command `mplug`: what it lists, runs, completes, and says when something is missing."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mplug_triton
from mplug_triton.command import main
from mplug_triton.commands import COMMANDS, Command
from mplug_triton.completion import SHELLS, completion_script
from mplug_triton.location import ROOMS
from mplug_triton.program import as_typed, parser_of

ROOT = Path(__file__).parents[3]
SHELL_WANTED = f"error: mplug completion takes one of {', '.join(SHELLS)}, as in: mplug completion bash\n"


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in COMMANDS.values():
        assert re.search(rf"^  {command.name} +{re.escape(command.summary)}", printed, re.M)
    assert max(map(len, printed.splitlines())) < 120


def test_every_row_is_a_program() -> None:
    for command in COMMANDS.values():
        if command.is_script:
            assert (ROOMS / command.program).is_file(), command
        else:
            assert (ROOMS / command.program.replace(".", "/") / "__main__.py").is_file(), command


def test_version_has_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    """CITATION.cff names the newest release, which the package's version is not older than."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mplug {mplug_triton.__version__}\n"
    released = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert re.search(rf"^version: {released}$", (ROOT / "CITATION.cff").read_text(), re.M)
    ours = tuple(map(int, mplug_triton.__version__.split(".")[:3]))
    assert ours >= tuple(map(int, released.split(".")))
    assert 'dynamic = ["version"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["capton"], "error: mplug has no command 'capton'; did you mean caption? (see mplug --help)\n"),
        (["zzzz"], "error: mplug has no command 'zzzz' (see mplug --help)\n"),
        (["completion"], SHELL_WANTED),
        (["completion", "cmd"], SHELL_WANTED),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr() == ("", complaint)


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "usage: mplug COMMAND" in printed.err


def test_help_of_a_command_speaks_of_mplug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: mplug caption ") and "  mplug caption photo.jpg other.png" in printed
    assert "clients/" not in printed
    assert main(["serve", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: mplug serve ") and "python -m" not in printed
    assert main(["retrieve", "search", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mplug retrieve search ")


def test_texts_of_a_program_are_those_of_the_command() -> None:
    build, serve = COMMANDS["build"], COMMANDS["serve"]
    assert as_typed("  python builders/build.py a --output b", build) == "  mplug build a --output b"
    assert as_typed("what builders/build.py takes", build) == "what mplug build takes"
    assert as_typed("python -m mplug.server DIR", serve) == "mplug serve DIR"
    assert as_typed(None, serve) is None


def test_a_subcommand_leaves_with_the_code_of_its_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["caption", "absent.png", "--url", "localhost:9"])
    assert left.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert sys.argv[0] != "mplug caption"


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [("caption", "tritonclient", ""), ("serve", "psutil", "[serve]"), ("build", "torch", "[build]")],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(
    command: str, package: str, extra: str, tmp_path: Path
) -> None:
    """A module that is None in sys.modules cannot be imported; a process of its own has imported nothing yet."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    for arguments in (["--help"], ["x"]):
        done = subprocess.run(
            [sys.executable, "-m", "mplug_triton", command, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and done.stdout == ""
        assert re.fullmatch(
            rf"error: mplug {command} needs the package {package}\S*, which is not installed: "
            rf"pip install 'mplug-triton{re.escape(extra)}'\n",
            done.stderr,
        ), done.stderr


def test_a_failing_program_is_not_mistaken_for_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mplug_triton.program.ROOMS", tmp_path)
    (tmp_path / "broken.py").write_text("raise ValueError('mine')\n")
    with pytest.raises(ValueError, match="mine"):
        mplug_triton.program.run(Command("broken", "broken.py", "", ""), [])
    assert str(tmp_path) not in sys.path


@pytest.fixture(scope="module")
def bash_completion() -> str:
    return completion_script("bash")


def test_completion_knows_commands_and_their_options(bash_completion: str, tmp_path: Path) -> None:
    """Asked as bash asks it."""
    script = tmp_path / "mplug.bash"
    script.write_text(bash_completion)

    def complete(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_mplug; "
        done = subprocess.run(["bash", "-c", code + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert {"caption", "build", "serve", "completion"} <= complete("mplug", "")
    assert complete("mplug", "gro") == {"ground"}
    assert "--num-beams" in complete("mplug", "caption", "--num")
    assert complete("mplug", "build", "--target", "tensorrt") == {"tensorrt", "tensorrt-rtx"}
    assert "--top" in complete("mplug", "retrieve", "search", "--t")


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell != "bash"])
def test_other_shells_have_a_script(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    light = {name: command for name, command in COMMANDS.items() if not command.extra}
    monkeypatch.setattr("mplug_triton.completion.COMMANDS", light)
    assert "retrieve" in completion_script(shell)


def test_the_parser_is_found_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr("clients.command_line.ask_each", lambda *_: ran.append(1))
    assert "--num-beams" in parser_of(COMMANDS["caption"]).format_help() and not ran


def test_names_of_the_package() -> None:
    import clients.client

    assert mplug_triton.Client is clients.client.Client
    assert set(mplug_triton.__all__) - {"Pipeline"} <= set(clients.client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        mplug_triton.Clint  # noqa: B018


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mplug", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("mplug_triton", run_name="__main__")
    assert left.value.code == 0 and capsys.readouterr().out.startswith("mplug ")
