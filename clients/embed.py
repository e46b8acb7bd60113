"""Embeddings of pictures, videos and texts for retrieval, by a running server.

python clients/embed.py photo.jpg --texts "a dog" "a cat" --output features.npy
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from clients import command_line
from clients.client import Client, ClientError
from clients.outputs import check_output, replacing

_EXAMPLE = """\
  python clients/embed.py photo.jpg other.png --texts "a dog" --output features.npy
  python clients/embed.py --video clip.mp4 --json
  {"image": "clip.mp4", "feature": [0.0123, …]}

Vectors have length 1: their dot product is the similarity. The rows of a .npy are the images and then the texts, in
the order given; nothing is written unless all of them were embedded."""


def main(arguments: list[str] | None = None) -> int:
    """Print or writes a vector per image and text; returns the exit code."""
    parser = command_line.Parser("Embed images, a video, and texts with a running mPLUG server.", _EXAMPLE)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("--texts", nargs="+", default=[], metavar="TEXT", help="texts to embed as well")
    parser.add_argument(
        "--output", metavar="FILE", help="write FILE.npy, float32 [n, E], or FILE.json, and print nothing"
    )
    command_line.add_json(parser, "image and text")
    command_line.add_video(parser)
    command_line.add_server(parser)
    options = parser.parse_intermixed_args(arguments)
    visual = options.images or options.video or options.frames
    subjects = command_line.visual_subjects(parser, options, options.images) if visual or not options.texts else []
    subjects += [(text, {"text": text}) for text in options.texts]
    output = None if options.output is None else Path(options.output)
    if output is not None and output.suffix not in (".npy", ".json"):
        parser.error(f"--output {output}: must end in .npy or .json")
    if output is not None:
        try:
            check_output(output, _is_ours)
        except ClientError as error:
            return command_line.fail(str(error))
    texts_from = len(subjects) - len(options.texts)
    rows: list[dict[str, object]] = []

    def ask(client: Client, text: str | None = None, **visual: object) -> np.ndarray:
        return client.embed_image(**visual) if text is None else client.embed_text(text)

    def show(name: str, feature: np.ndarray) -> None:
        rows.append({"image" if len(rows) < texts_from else "text": name, "feature": feature.tolist()})
        if output is None and options.json:
            command_line.print_json(rows[-1])
        elif output is None:
            print(f"{name}\t{' '.join(f'{value:.6f}' for value in feature)}", flush=True)

    code = command_line.ask_each(options, subjects, ask, show, noun="input")
    if output is None or code:
        return code
    try:
        with replacing(output) as file:
            if output.suffix == ".npy":
                np.save(file, np.array([row["feature"] for row in rows], np.float32))
            else:
                file.write(json.dumps(rows).encode() + b"\n")
    except ClientError as error:
        return command_line.fail(str(error))
    return 0


def _is_ours(path: Path) -> bool:
    """Return whether a file is one that this command wrote, as a whole: unit vectors, and in JSON nothing else."""
    if path.suffix == ".npy":
        vectors = np.load(path, allow_pickle=False)
        if vectors.dtype != np.float32 or vectors.ndim != 2:
            return False
    else:
        rows = json.loads(path.read_bytes())
        if not isinstance(rows, list) or any(
            set(row) not in ({"image", "feature"}, {"text", "feature"}) for row in rows
        ):
            return False
        vectors = np.array([row["feature"] for row in rows], np.float32)
    return len(vectors) > 0 and bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))


if __name__ == "__main__":
    command_line.run(main)
