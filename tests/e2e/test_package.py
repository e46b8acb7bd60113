"""The wheel in fresh environments, used from outside the checkout: as a client, and to build and to serve."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from wheel_environment import Environment, environment_with

from mplug.server.command import TritonServer
from mplug_triton.commands import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[2]
PICTURE = CHECKOUT / "examples" / "scene-01.png"
#: What `make test` installs of tests/client-requirements.txt.
CLIENT_PACKAGES = Path(sys.prefix) / "client" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def client_alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The package without extras: numpy, pillow, tritonclient, tqdm, shtab, and what these need."""
    if not CLIENT_PACKAGES.is_dir():
        pytest.skip(f"{CLIENT_PACKAGES} is missing; make test installs it")
    return environment_with(wheel, CLIENT_PACKAGES / "site-packages", tmp_path_factory.mktemp("client") / "environment")


@pytest.fixture(scope="module")
def with_extras(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The package beside everything that its extras bring."""
    packages = Path(sysconfig.get_path("purelib"))
    return environment_with(wheel, packages, tmp_path_factory.mktemp("extras") / "environment")


def test_site_packages_gets_two_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mplug", "mplug_triton"}
    assert not [name for name in names if name.endswith(".pyc") or "__pycache__" in name]
    for path in (CHECKOUT / "model_repository").rglob("*.*"):
        if path.suffix != ".pyc":
            assert f"mplug_triton/rooms/{path.relative_to(CHECKOUT)}" in names
    for command in COMMANDS.values():
        expected = f"mplug_triton/rooms/{command.program}" if command.is_script else "mplug/server/__main__.py"
        assert expected in names


def test_a_client_needs_nothing_else(client_alone: Environment, every_task_server: TritonServer) -> None:
    """The same answer as that of the script in the checkout, over both protocols."""
    script = [sys.executable, CHECKOUT / "clients" / "caption.py", PICTURE, "--json", "--url"]
    expected = subprocess.run(
        [*script, every_task_server.grpc_url], capture_output=True, text=True, check=True, cwd=CHECKOUT
    ).stdout
    for protocol, url in (("grpc", every_task_server.grpc_url), ("http", every_task_server.http_url)):
        answered = client_alone.run("mplug", "caption", PICTURE, "--json", "--url", url, "--protocol", protocol)
        assert answered.stdout == expected and answered.stderr == ""


def test_the_client_is_imported_by_its_own_name(client_alone: Environment, every_task_server: TritonServer) -> None:
    """And brings nothing else of ours into the importing process, and no `clients` or `builders` into site-packages."""
    code = (
        "import sys, importlib.util\n"
        "from mplug_triton import Client, ClientError, __version__\n"
        f"with Client({every_task_server.grpc_url!r}) as client:\n"
        f"    print(client.vqa({str(PICTURE)!r}, 'what is this?')[0].text, __version__)\n"
        "print([name for name in ('clients', 'builders', 'deploy') if importlib.util.find_spec(name)])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'mplug', 'torch', 'openvino'}))\n"
        "print(issubclass(ClientError, Exception))\n"
    )
    assert client_alone.run("python", "-c", code).stdout.splitlines()[1:] == ["[]", "[]", "True"]


def test_searching_works_from_the_wheel(client_alone: Environment, every_task_server: TritonServer) -> None:
    """A command of several files, which find each other inside the package."""
    server = ("--url", every_task_server.grpc_url)
    client_alone.run("mplug", "retrieve", "index", PICTURE.parent, "--output", "found.index", *server)
    found = client_alone.run("mplug", "retrieve", "search", "found.index", "a wolf", "--top", "2", *server)
    assert len(found.stdout.splitlines()) == 2


def test_what_an_extra_would_bring_is_named(client_alone: Environment) -> None:
    for name in ("build", "serve", "evaluate", "finetune"):
        complaint = client_alone.run("mplug", name, "--help", code=1).stderr
        assert complaint.startswith(f"error: mplug {name} needs the package ") and complaint.count("\n") == 1
        assert complaint.endswith(f"pip install 'mplug-triton[{COMMANDS[name].extra}]'\n")
    assert "iic/mplug_image-captioning_coco_base_en" in client_alone.run("mplug", "fetch").stdout  # needs no extra
    assert "retrieve" in client_alone.run("mplug", "completion", "bash").stdout
    assert "INPUT OUTPUT" in client_alone.run("mplug", "bulk-embed", "--help").stdout  # its help needs nothing
    complaint = client_alone.run("mplug", "bulk-embed", "photos", "features", code=1).stderr
    assert complaint.startswith("error: mplug bulk-embed needs the package ") and complaint.count("\n") == 1
    assert complaint.endswith("pip install 'mplug-triton[bulk]'\n")


def test_what_the_package_asks_for_is_there(client_alone: Environment) -> None:
    pip = [sys.executable, "-m", "pip", "--python", client_alone.folder / "bin" / "python", "check"]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_building_and_serving_from_the_wheel(with_extras: Environment, every_task: Path) -> None:
    """A checkpoint folder is all that a newcomer has beside the wheel."""
    built = with_extras.run("mplug", "build", every_task, "--output", "repository", "--target", "torch")
    assert built.stdout.splitlines()[-1].startswith("built repository")
    captioned = with_extras.run(
        "mplug", "serve", "repository", "--run", "mplug", "caption", PICTURE, "--num-beams", "2", "--url", "{grpc}"
    )
    assert captioned.stdout.strip() and "ready" in captioned.stderr


def test_a_served_process_reads_the_wheel_and_never_pytorch(
    with_extras: Environment, built: Callable[..., Path]
) -> None:
    """The compiled captioner, while it runs: its processes were started in the wheel's folder, and map no PyTorch."""
    code = (
        "import mplug, pathlib, sys\n"
        "from mplug_triton import Client\n"
        f"Client(sys.argv[1]).caption({str(PICTURE)!r})\n"
        "wheel = pathlib.Path(mplug.__file__).parents[1]\n"
        "stub = 'triton_python_backend_stub'\n"
        "stubs = [path.parent for path in pathlib.Path('/proc').glob('[0-9]*/exe')\n"
        "         if path.resolve().name == stub and (path.parent / 'cwd').resolve() == wheel]\n"
        "maps = [(stub / 'maps').read_text() for stub in stubs]\n"
        "print(wheel, len(maps), *(any(name in text for text in maps) for name in ('libtorch', 'openvino')))\n"
    )
    answered = with_extras.run("mplug", "serve", built("caption"), "--run", "python", "-c", code, "{grpc}")
    wheel, processes, torch, openvino = answered.stdout.split()
    assert Path(wheel).is_relative_to(with_extras.folder)
    assert int(processes) >= 3 and (torch, openvino) == ("False", "True")
