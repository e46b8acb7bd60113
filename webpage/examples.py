"""What a visitor finds filled in: the pictures of `examples/`, and something to ask of them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_SUFFIXES = (".mp4", ".webm")

QUESTIONS = [
    ("scene-01.png", "what is this?"),
    ("scene-02.png", "how many roosters are there?"),
    ("scene-05.png", "what color are the apples?"),
    ("scene-08.jpg", "what is to the left of the fish?"),
    ("scene-12.jpg", "are the tents above or below the pear?"),
]
EXPRESSIONS = [
    ("scene-02.png", "the spider"),
    ("scene-04.jpg", "the fire truck"),
    ("scene-06.png", "the watch below the package"),
    ("scene-08.jpg", "the swan on the left"),
]
SEARCHES = ["two green apples", "a fish", "a whale to the left of a fire truck", "a package above a watch"]
STATEMENTS = [
    ("scene-01.png", "scene-11.jpg", "there is a wolf in the left picture"),
    ("scene-09.png", "scene-05.png", "both pictures show the same number of objects"),
    ("scene-02.png", "scene-03.jpg", "neither picture shows a bee"),
]
VIDEO_QUESTION = "how many koalas are there?"


def pictures(folder: Path = FOLDER) -> list[Path]:
    """The pictures in a folder, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def videos(folder: Path = FOLDER) -> list[Path]:
    """The videos in a folder, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def rows(table: list[tuple[str, ...]], pictures_first: int = 1) -> list[list[str]]:
    """Rows of a table with the first columns as paths, without those whose picture is not here."""
    filled = []
    for row in table:
        paths = [FOLDER / name for name in row[:pictures_first]]
        if all(path.is_file() for path in paths):
            filled.append([*map(str, paths), *row[pictures_first:]])
    return filled
