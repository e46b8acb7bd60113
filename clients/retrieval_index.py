"""An index of pictures on disk: features in a FAISS file, paths in JSON lines, and a manifest that names both.

    index.json              the folder, the checkpoint's probe, and the names of the two files
    features-GENERATION.faiss, pictures-GENERATION.jsonl
    journal.jsonl           only while it is being made: what has been embedded since

The manifest is replaced last, so a reader sees the old index or the new one, and whoever is killed while indexing
finds in the journal all that was embedded. Row n of the features is line n of the pictures.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clients.client import ClientError
from clients.journal import Journal

#: Embedded with every index: another checkpoint gives another feature, and mixing the two gives nonsense.
PROBE = "a dog"  # short: what a checkpoint takes of a text is limited
#: What one checkpoint's features of one text have in common at least, in whatever precision it is compiled.
_SAME_CHECKPOINT = 0.99

_MANIFEST, _JOURNAL = "index.json", "journal.jsonl"
_FORMAT = 1


@dataclass(frozen=True)
class Picture:
    """A picture of the folder as it was when it was embedded, or refused for a reason."""

    path: str  #: relative to the folder
    size: int  #: bytes
    modified: int  #: nanoseconds since 1970
    reason: str = ""  #: why there is no feature of it


def _faiss() -> Any:
    try:
        import faiss  # on use: only retrieval needs it
    except ImportError as error:
        advice = "pip install -r requirements-serve.txt"
        raise ClientError(f"an index needs faiss ({error}): {advice}", "UNREADABLE") from error
    # One query is a product of a matrix and a vector: threads that wait for each other cost more than it takes
    # (0.2 ms instead of tens of them for 10,000 pictures where others use the cores, too).
    faiss.omp_set_num_threads(1)
    return faiss


@dataclass(frozen=True)
class Index:
    """An index that was read."""

    folder: Path  #: of the pictures
    probe: np.ndarray  #: float32 [E]
    pictures: Sequence[Picture]  #: those that have a feature, n of them
    refused: Sequence[Picture]  #: the others
    features: Any  #: faiss.IndexFlatIP of n rows

    @classmethod
    def read(cls, path: Path) -> Index:
        """Raises ClientError where there is none, or a damaged one."""
        faiss = _faiss()
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
        except FileNotFoundError as error:
            interrupted = (path / _JOURNAL).exists()
            reason = "its making was interrupted: index the folder again" if interrupted else "no index there"
            raise ClientError(f"{path}: {reason}", "UNREADABLE") from error
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if manifest.get("format") != _FORMAT:
            raise ClientError(f"{path}: format {manifest.get('format')}, but this reads {_FORMAT}", "UNREADABLE")
        try:
            features = faiss.read_index(str(path / manifest["features"]))
            lines = (path / manifest["pictures"]).read_text().splitlines()
            pictures = [Picture(**json.loads(line)) for line in lines]
            kept = [picture for picture in pictures if not picture.reason]
            refused = [picture for picture in pictures if picture.reason]
            probe = np.array(manifest["probe"], np.float32)
            if features.ntotal != len(kept) or features.d != len(probe):
                raise ValueError(f"{features.ntotal} features of {features.d} numbers for {len(kept)} pictures")
            return cls(Path(manifest["folder"]), probe, kept, refused, features)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # RuntimeError: from FAISS
            raise _damaged(path, error) from error

    @classmethod
    def of(cls, folder: Path, probe: np.ndarray, pictures: Iterable[tuple[Picture, np.ndarray | None]]) -> Index:
        """From pictures and their features float32 [E], None for those that have none."""
        pairs = list(pictures)
        features = _faiss().IndexFlatIP(len(probe))
        rows = [feature for _, feature in pairs if feature is not None]
        if rows:
            features.add(np.stack(rows))
        kept = [picture for picture, feature in pairs if feature is not None]
        return cls(folder, probe, kept, [picture for picture, feature in pairs if feature is None], features)

    def nearest(self, feature: np.ndarray, count: int) -> list[tuple[str, float]]:
        """The paths of the most similar pictures with their similarities, best first. Exact, in one pass."""
        count = min(count, len(self.pictures))
        if count == 0:
            return []
        similarities, rows = self.features.search(np.asarray(feature, np.float32)[None], count)
        paths = (str(self.folder / self.pictures[row].path) for row in rows[0])
        return list(zip(paths, similarities[0].tolist(), strict=True))

    def known(self) -> dict[str, tuple[Picture, np.ndarray | None]]:
        """By path: each picture with its feature."""
        rows = self.features.reconstruct_n(0, len(self.pictures)) if self.pictures else ()
        found = {picture.path: (picture, row) for picture, row in zip(self.pictures, rows, strict=True)}
        return found | {picture.path: (picture, None) for picture in self.refused}

    def check_probe(self, probe: np.ndarray, path: Path) -> None:
        """Raises ClientError where the server's checkpoint is not the one that made the index."""
        if not same_checkpoint(self.probe, probe):
            raise ClientError(f"{path} was made by another checkpoint than the server's: index the folder anew")

    def write(self, path: Path) -> None:
        """In place of what is there; readers see one or the other."""
        generation = os.urandom(4).hex()
        names = {"features": f"features-{generation}.faiss", "pictures": f"pictures-{generation}.jsonl"}
        old = [each for each in path.iterdir() if each.suffix in (".faiss", ".jsonl") and each.name != _JOURNAL]
        _faiss().write_index(self.features, str(path / names["features"]))
        with (path / names["pictures"]).open("w") as file:
            file.writelines(json.dumps(asdict(each)) + "\n" for each in (*self.pictures, *self.refused))
        manifest = {"format": _FORMAT, "folder": str(self.folder), "count": len(self.pictures)} | names
        manifest["probe"] = [float(value) for value in self.probe]
        temporary = path / f".{_MANIFEST}.new"
        temporary.write_text(json.dumps(manifest) + "\n")
        for name in (*names.values(), temporary.name):
            with (path / name).open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path / _MANIFEST)
        for each in old:
            if each.name.startswith(("features-", "pictures-")):
                each.unlink(missing_ok=True)


class IndexInTheMaking:
    """What was embedded before and since, whoever interrupted it; open for this process alone."""

    def __init__(self, path: Path, folder: Path, probe: np.ndarray) -> None:
        """Raises ClientError where the index is of another folder or another checkpoint, or being made by others."""
        self.path, self.folder, self.probe = path, folder.resolve(), probe
        _faiss()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClientError(f"{path} cannot be made: {error.strerror}", "UNREADABLE") from error
        self._journal = Journal(path / _JOURNAL)
        try:
            self.before = Index.read(path) if (path / _MANIFEST).exists() else None
            self.known = self._known()
        except BaseException:
            if not self._journal.entries:
                self._journal.path.unlink()
            self._journal.close()
            raise

    def _known(self) -> dict[str, tuple[Picture, np.ndarray | None]]:
        known: dict[str, tuple[Picture, np.ndarray | None]] = {}
        if self.before is not None:
            self._check(str(self.before.folder), self.before.probe)
            known |= self.before.known()
        if not self._journal.entries:
            self._journal.append({"folder": str(self.folder), "probe": _packed(self.probe)})
            return known
        try:
            head, *entries = self._journal.entries
            self._check(head["folder"], _unpacked(head["probe"]))
            for entry in entries:
                packed = entry.pop("feature")
                picture = Picture(**entry)
                known[picture.path] = (picture, None if packed is None else _unpacked(packed))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.path, error) from error
        return known

    def _check(self, folder: str, probe: np.ndarray) -> None:
        # A folder that has moved away leaves its index behind: the pictures are the same.
        if folder != str(self.folder) and Path(folder).exists():
            raise ClientError(f"{self.path} is an index of {folder}: give another --output")
        if not same_checkpoint(probe, self.probe):
            raise ClientError(f"{self.path} was made by another checkpoint than the server's: give another --output")

    def is_known(self, picture: Picture) -> bool:
        """Whether it was embedded, or refused, as it is now."""
        found = self.known.get(picture.path)
        return found is not None and replace(found[0], reason="") == replace(picture, reason="")

    def refuse(self, picture: Picture, reason: str) -> None:
        """It has no feature, and is not asked about again until it changes."""
        self.add(replace(picture, reason=reason), None)

    def add(self, picture: Picture, feature: np.ndarray | None) -> None:
        """Outlives this process from now on."""
        packed = None if feature is None else _packed(feature)
        self._journal.append(asdict(picture) | {"feature": packed})
        self.known[picture.path] = (picture, feature)

    def finish(self, paths: Iterable[str]) -> Index:
        """The index of these paths, written; those that are not known are left out."""
        index = Index.of(self.folder, self.probe, (self.known[path] for path in paths if path in self.known))
        before = self.before
        same = before is not None and (before.folder, list(before.pictures), list(before.refused)) == (
            index.folder,
            list(index.pictures),
            list(index.refused),
        )
        if not same:
            index.write(self.path)
        (self.path / _JOURNAL).unlink()
        return index

    def close(self) -> None:
        """Without `finish`: what was embedded stays for the next time."""
        self._journal.close()


def same_checkpoint(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two features of the probe are one checkpoint's."""
    return one.shape == other.shape and float(one @ other) > _SAME_CHECKPOINT


def _packed(feature: np.ndarray) -> str:
    return base64.b64encode(np.asarray(feature, "<f4").tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


def _damaged(path: Path, error: Exception) -> ClientError:
    return ClientError(f"{path}: the index is damaged ({error}): remove it and index the folder again", "UNREADABLE")
