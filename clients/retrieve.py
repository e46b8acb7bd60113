"""Search a folder of pictures and videos in words or by a picture, with a running server.

python clients/retrieve.py index photos --output photos.index
python clients/retrieve.py search photos.index "a dog on a beach" --html found.html
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from clients import command_line, result_page
from clients.client import AsyncClient, ClientError, Match
from clients.concurrent_requests import add_concurrency, answers
from clients.faiss_index import FaissIndex
from clients.pictures import as_arguments, check_file, in_folder
from clients.retrieval_index import PROBE, Index, IndexWriter, Picture

_EXAMPLE = """\
  python clients/retrieve.py index photos --output photos.index
  python clients/retrieve.py search photos.index "a dog on a beach" --top 3 --html found.html
  5.214\t0.412\tphotos/beach.jpg
  python clients/retrieve.py search photos.index --image sofa.jpg
  python clients/retrieve.py search photos.index --image sofa.jpg --texts captions.txt

The matching head ranks the --shortlist pictures whose embeddings are most similar to the query's. Each line holds its
logit, the similarity and the path, best first; a search by picture has the similarity alone."""

_LARGEST = 1000
TEXTS_PER_MATCH = 256  # what the model `match` takes

Parsed = tuple[argparse.Namespace, Callable[[argparse.Namespace], Coroutine[None, None, int]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = command_line.Parser("Search pictures with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("command", choices=list(_COMMANDS), help="index or search; each has its own --help")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…")
    rest = list(sys.argv[1:] if arguments is None else arguments)
    name = next((argument for argument in rest if argument in _COMMANDS), None)
    if name is None:
        parser.parse_args(rest)  # help, or wrong usage
        parser.error(f"give one of {', '.join(_COMMANDS)}")
    rest.remove(name)  # options may stand before it, too
    options, run = _COMMANDS[name](rest)
    try:
        return asyncio.run(run(options))
    except ClientError as error:
        return command_line.fail(str(error))
    except KeyboardInterrupt:
        command_line.fail("interrupted" + ("; the same command goes on" if name == "index" else ""))
        return command_line.INTERRUPTED


def _parse_index(arguments: list[str]) -> Parsed:
    parser = command_line.Parser("Embed a folder of pictures, or what has changed in it.", prog="retrieve.py index")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of pictures; those in folders below it are included"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="INDEX", help="file of the index")
    parser.add_argument("--videos", action="store_true", help="index videos as well; each is one entry")
    parser.add_argument("--json", action="store_true", help="print the summary as a JSON object")
    add_concurrency(parser)
    command_line.add_server(parser)
    return parser.parse_intermixed_args(arguments), _index


def _parse_search(arguments: list[str]) -> Parsed:
    parser = command_line.Parser("Find pictures, or with --texts find texts.", prog="retrieve.py search")
    parser.add_argument("index", type=Path, metavar="INDEX", help="what `index` wrote, or bulk/index.py")
    parser.add_argument("words", nargs="?", metavar="WORDS", help="what the pictures should show")
    parser.add_argument("--image", metavar="PICTURE", help="search by this picture, or video")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="with --image: find lines of FILE that fit it")
    parser.add_argument("--top", type=_number, default=10, metavar="N", help="results shown; default: 10")
    parser.add_argument(
        "--shortlist",
        type=_number,
        default=32,
        metavar="N",
        help="how many of the most similar are ranked by the matching head; default: 32",
    )
    parser.add_argument("--no-rerank", action="store_true", help="rank by similarity alone")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page of thumbnails, in one file")
    group = parser.add_argument_group("indexes of bulk/index.py")
    group.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where the pictures are; default: where they were"
    )
    group.add_argument(
        "--search-settings",
        metavar="STRING",
        help="nprobe=64 looks into 64 lists of an IVF index; default: what the index says",
    )
    command_line.add_json(parser, "result")
    add_concurrency(parser)
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)
    if (options.words is None) == (options.image is None):
        parser.error("search takes either WORDS or --image PICTURE")
    if options.texts is not None and options.image is None:
        parser.error("--texts goes with --image")
    return options, _search


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {_LARGEST}")
    return int(text)


# ----------------------------------------------------------------------------------------------- index


async def _index(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise ClientError(f"{options.folder} is not a folder", "UNREADABLE")
    paths = in_folder(options.folder, videos=options.videos)
    async with AsyncClient(**command_line.connection_arguments(options)) as client:
        writer = IndexWriter(options.output, options.folder, await client.embed_text(PROBE))
        try:
            unreadable = await _embed(client, writer, paths, options.concurrency)
            index = writer.finish(paths)
        finally:
            writer.close()
    refused = unreadable | {picture.path: picture.reason for picture in index.refused}
    for path, reason in sorted(refused.items()):
        print(f"skipped: {options.folder / path}: {reason}", file=sys.stderr)
    document = {"pictures": len(index.pictures), "skipped": len(refused), "index": str(options.output)}
    if options.json:
        command_line.print_json(document | {"reasons": refused})
    else:
        skipped = f", {len(refused)} skipped" if refused else ""
        print(f"{len(index.pictures)} pictures{skipped}: {options.output}", flush=True)
    return 0


async def _embed(client: AsyncClient, writer: IndexWriter, paths: list[str], concurrency: int) -> dict[str, str]:
    """Embed what is not known; returns the reasons of those that failed now and are tried again the next time."""
    left, unreadable = [], {}
    for path in paths:
        try:
            status = check_file(writer.folder / path)
        except ClientError as error:
            unreadable[path] = str(error)
            writer.known.pop(path, None)
            continue
        picture = Picture(path, status.st_size, status.st_mtime_ns)
        if not writer.is_known(picture):
            writer.known.pop(path, None)
            left.append(picture)

    async def embed(picture: Picture) -> np.ndarray:
        return await client.embed_image(**as_arguments(writer.folder / picture.path))

    with tqdm(total=len(paths), initial=len(paths) - len(left), unit="image", disable=None) as bar:
        async for picture, found in answers(left, embed, concurrency):
            if not isinstance(found, ClientError):
                writer.add(picture, found)
            elif found.status == "INVALID_ARGUMENT":  # it fails until the file changes
                writer.refuse(picture, str(found))
            else:
                unreadable[picture.path] = str(found)
            bar.update()
    return unreadable


# ---------------------------------------------------------------------------------------------- search


@dataclass(frozen=True)
class Result:
    """A picture or a text that was found. `score` is the matching head's logit, if it was used."""

    name: str
    similarity: float
    score: float | None = None

    @property
    def rank_key(self) -> float:
        return self.similarity if self.score is None else self.score


async def _search(options: argparse.Namespace) -> int:
    if options.html is not None:
        result_page.check(options.html)
    index = _opened(options)
    shortlist = max(options.shortlist, options.top)
    async with AsyncClient(**command_line.connection_arguments(options)) as client:
        index.check_probe(await client.embed_text(index.probe_text), options.index)
        failures: list[str] = []
        if options.texts is not None:
            texts = _lines(options.texts)
            results = await nearest_texts(client, options.image, texts, shortlist, options)
        elif options.image is not None:
            feature = await client.embed_image(**as_arguments(options.image))
            results = [Result(*each) for each in index.nearest(feature, options.top)]
        else:
            feature = await client.embed_text(options.words)
            results = [Result(*each) for each in index.nearest(feature, shortlist)]
            if not options.no_rerank:
                _check_pictures(results, options)
                results, failures = await reranked(client, options.words, results, options.concurrency)
    results = sorted(results, key=lambda result: -result.rank_key)[: options.top]
    _show(results, options)
    for failure in failures:
        command_line.fail(failure)
    return 1 if failures else 0


def _opened(options: argparse.Namespace) -> Index | FaissIndex:
    """Open an index of either kind. Raises ClientError."""
    if FaissIndex.is_at(options.index):
        return FaissIndex.read(options.index, options.search_settings, options.pictures)
    if options.search_settings is not None or options.pictures is not None:
        raise ClientError("--pictures and --search-settings are for indexes of bulk/index.py")
    return Index.read(options.index)


def _check_pictures(results: list[Result], options: argparse.Namespace) -> None:
    """Raise ClientError when none of the results is a file here, as in an index of parquet files or of a bucket."""
    if FaissIndex.is_at(options.index) and results and not any(Path(result.name).exists() for result in results):
        raise ClientError(
            f"the pictures of {options.index} are no files here ({results[0].name}): say where they are with "
            "--pictures FOLDER, or leave out the matching head with --no-rerank",
            "UNREADABLE",
        )


async def reranked(
    client: AsyncClient, words: str, shortlist: list[Result], concurrency: int
) -> tuple[list[Result], list[str]]:
    """Return the shortlist with scores of the matching head, and what failed (it is left out)."""

    async def match(result: Result) -> Match:
        return (await client.match(texts=[words], **as_arguments(result.name)))[0]

    scored, failures = [], []
    async for result, found in answers(shortlist, match, concurrency):
        if isinstance(found, ClientError):
            failures.append(str(found) if found.status == "UNREADABLE" else f"{result.name}: {found}")
        else:
            scored.append(Result(result.name, result.similarity, found.score))
    return scored, failures


async def nearest_texts(
    client: AsyncClient, image: str, texts: list[str], shortlist: int, options: argparse.Namespace
) -> list[Result]:
    """Return texts by how well they fit a picture; the matching head sees the shortlist of many alone."""
    if len(texts) > TEXTS_PER_MATCH or options.no_rerank:
        feature = await client.embed_image(**as_arguments(image))
        similarities = {}
        with tqdm(total=len(texts), unit="text", disable=None) as bar:
            async for text, found in answers(texts, client.embed_text, options.concurrency):
                if isinstance(found, ClientError):
                    raise ClientError(f"{options.texts}: {text!r}: {found}", found.status)
                similarities[text] = float(found @ feature)
                bar.update()
        texts = sorted(texts, key=lambda text: -similarities[text])[:shortlist]
        if options.no_rerank:
            return [Result(text, similarities[text]) for text in texts]
    results: list[Result] = []
    for start in range(0, len(texts), TEXTS_PER_MATCH):
        some = texts[start : start + TEXTS_PER_MATCH]
        matches = await client.match(texts=some, **as_arguments(image))
        results += [Result(text, each.similarity, each.score) for text, each in zip(some, matches, strict=True)]
    return results


def _lines(path: Path) -> list[str]:
    """Return the texts of a file, one per line, each once."""
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClientError(f"{path} cannot be read as text: {reason}", "UNREADABLE") from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise ClientError(f"{path} holds no texts", "UNREADABLE")
    return texts


def _show(results: list[Result], options: argparse.Namespace) -> None:
    what = "text" if options.texts is not None else "image"
    for rank, result in enumerate(results, 1):
        scores = {} if result.score is None else {"score": result.score}
        scores["similarity"] = result.similarity
        if options.json:
            command_line.print_json({"rank": rank, what: result.name} | scores)
        else:
            print("\t".join([*(f"{value:.3f}" for value in scores.values()), result.name]), flush=True)
    if options.html is None:
        return
    shown = [
        result_page.Shown(
            result.name,
            f"similarity {result.similarity:.3f}" + ("" if result.score is None else f" · match {result.score:.3f}"),
            None if what == "text" else _thumbnail(result.name),
        )
        for result in results
    ]
    query = options.words if options.words is not None else options.image
    result_page.write(options.html, query, shown, options.image and _thumbnail(options.image))


def _thumbnail(path: str) -> str | None:
    """Return what a page shows of a file: nothing of videos, which go by their names."""
    return path if "image" in as_arguments(path) else None


_COMMANDS = {"index": _parse_index, "search": _parse_search}


if __name__ == "__main__":
    command_line.run(main)
