"""Where published mPLUG checkpoints are, and whether what was downloaded is whole. Downloads nothing itself.

    python builders/fetch.py                        # the official places, and how to download from them
    python builders/fetch.py FOLDER                 # checks every file of a folder, or of a hub's cache
    python builders/fetch.py FOLDER --record SUMS   # and writes the SHA-256 of each file
    python builders/fetch.py FOLDER --sums SUMS     # holds them against such a record

A file is refused that is a Git LFS pointer or a web page, ends too early, or has another hash than its source states.
Hugging Face names blobs by their hashes. ModelScope and the authors state none where they can be read offline: then the
hash is computed and shown, and --record keeps it. SUMS is what `sha256sum` writes and `sha256sum --check` reads.

Exit code 0 when every file is whole, else 1 and a line on stderr for what is not.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our packages are in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mplug.hub import CacheError, find_snapshot, impostor, incomplete

AUTHORS = "https://alice-open.oss-cn-zhangjiakou.aliyuncs.com/mPLUG"


@dataclass(frozen=True)
class Place:
    """A published checkpoint that was fine-tuned for a task."""

    name: str  #: ModelScope's
    task: str
    size: str
    language: str


#: As named by the tests and the documentation of github.com/modelscope/modelscope; `damo` has been renamed `iic`.
MODELSCOPE = (
    Place("mplug_image-captioning_coco_base_en", "image captioning", "base", "English"),
    Place("mplug_image-captioning_coco_large_en", "image captioning", "large", "English"),
    Place("mplug_image-captioning_coco_base_zh", "image captioning", "base", "Chinese"),
    Place("mplug_visual-question-answering_coco_large_en", "visual question answering", "large", "English"),
    Place("mplug_visual-question-answering_coco_base_zh", "visual question answering", "base", "Chinese"),
    Place("mplug_image-text-retrieval_flickr30k_large_en", "image-text retrieval", "large", "English"),
)
#: The table of pre-trained models in the README of github.com/X-PLUG/mPLUG: weights, CLIP's weights, parameters.
PRETRAINED = (
    ("mplug_base.pth", "ViT-B-16.tar", "350M"),
    ("mplug_large.pth", "ViT-L-14.tar", "600M"),
    ("mplug_large_v2.pth", "ViT-L-14.tar", "600M"),
)


class FetchError(ValueError):
    """What was asked cannot be done; the message is one line."""


@dataclass(frozen=True)
class Stated:
    """A hash that somebody states of a file."""

    digest: str  #: hexadecimal
    by: str  #: who states it
    git: bool = False  #: Git's SHA-1 of a blob, which is of a header and the file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "downloads", nargs="*", type=Path, metavar="DOWNLOAD", help="a folder, a hub's cache of one model, or a file"
    )
    parser.add_argument("--sums", type=Path, metavar="FILE", help="hold every file against these SHA-256 sums")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the SHA-256 sums of all files")
    options = parser.parse_args(arguments)
    if not options.downloads:
        if options.sums or options.record:
            parser.error("--sums and --record: name what was downloaded")
        print(places())
        return 0
    try:
        return check(options.downloads, options.sums, options.record)
    except (FetchError, CacheError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


def places() -> str:
    """Return the official places as a text for people."""
    width = max(len(place.name) for place in MODELSCOPE)
    fine_tuned = "\n".join(
        f"  iic/{place.name:{width}s}  {place.size:5s}  {place.language:7s}  {place.task}" for place in MODELSCOPE
    )
    pretrained = "\n".join(
        f"  {weights:18s} {parameters} parameters, vision encoder from {clip}"
        for weights, clip, parameters in PRETRAINED
    )
    return f"""Fine-tuned for a task, on ModelScope (https://www.modelscope.cn/models/iic/NAME; formerly damo/NAME):
{fine_tuned}

  pip install modelscope
  modelscope download --model iic/NAME --local_dir NAME
  mplug fetch NAME                                 # is it whole? (python builders/fetch.py in a checkout)
  mplug build NAME --output repository             # (python builders/build.py)

Pre-trained, to be fine-tuned, from the authors (https://github.com/X-PLUG/mPLUG, where their YAMLs are),
from {AUTHORS}/:
{pretrained}

Nothing was downloaded: this command and the server fetch nothing."""


def check(downloads: Sequence[Path], sums: Path | None, record: Path | None) -> int:
    """Check every file of the downloads, print a line for each, and return the exit code.

    Raises FetchError, CacheError or OSError for what cannot be read.
    """
    wanted = read_sums(sums) if sums else {}
    found: dict[str, str] = {}
    wrong = 0
    for path in files_of(downloads):
        problem = impostor(path) or incomplete(path)
        if problem is None:
            digest = sha256(path)
            if found.setdefault(path.name, digest) != digest:
                raise FetchError(f"{path}: a file of this name was checked already; give one checkpoint at a time")
            stated = [Stated(wanted[path.name], f"{sums}")] if path.name in wanted else stated_by_hub(path)
            problem = difference(path, digest, stated)
            by = f"as {stated[0].by} states" if stated else "no source states a hash: computed here"
        if problem is None:
            print(f"{digest}  {path.name}  {path.stat().st_size:,} bytes  ({by})", flush=True)
        else:
            wrong += 1
            print(f"error: {path}: {problem}", file=sys.stderr)
    for name in sorted(set(wanted) - set(found)):
        if not wrong:  # else it may be the one that was just reported
            print(f"error: {name}: is in {sums} and was not downloaded", file=sys.stderr)
        wrong += 1
    if record and not wrong:
        record.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(found.items())))
    return 1 if wrong else 0


def files_of(downloads: Sequence[Path]) -> list[Path]:
    """Return the files of folders and caches, and files themselves. Raises FetchError, or CacheError."""
    files = []
    for download in downloads:
        if download.is_file():
            files.append(download)
        elif download.is_dir():
            folder = find_snapshot(download).folder
            files += sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        else:
            raise FetchError(f"{download}: no such file or folder")
    if not files:
        raise FetchError(f"{downloads[0]}: holds no files")
    return files


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_sha1(path: Path) -> str:
    """Return the hash by which Git names a file's content: SHA-1 of `blob SIZE`, a zero byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stated_by_hub(path: Path) -> list[Stated]:
    """Return the hash that Hugging Face states of a file, if there is one.

    In its cache a blob is named by its ETag: SHA-256 of large files, Git's SHA-1 of others. Beside a `--local-dir`
    the ETag is the second line of `.cache/huggingface/download/NAME.metadata`.
    """
    metadata = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    etag = ""
    if path.is_symlink() and path.resolve().parent.name == "blobs":
        etag = path.resolve().name
    elif metadata.is_file():
        etag = "".join(metadata.read_text(errors="replace").splitlines()[1:2]).strip()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
        return []
    return [Stated(etag, "Hugging Face", git=len(etag) == 40)]


def difference(path: Path, digest: str, stated: Sequence[Stated]) -> str | None:
    """Return what is wrong with a file's hash, as the end of a sentence, or None."""
    for each in stated:
        ours = git_sha1(path) if each.git else digest
        if ours != each.digest:
            return f"has the hash {ours} where {each.by} states {each.digest}; download it again"
    return None


def read_sums(path: Path) -> dict[str, str]:
    """Read a file of `sha256sum` into digests by name. Raises FetchError for any other line."""
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not found:
            raise FetchError(f"{path}, line {number}: is not a SHA-256 and a name, as sha256sum writes them")
        sums[Path(found[2]).name] = found[1].lower()
    return sums


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
