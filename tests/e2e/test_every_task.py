"""One checkpoint for every task: all public models over one set of stages, each answer that of the network.

Searches are greedy here, so that a loop of a few lines is the reference; beams are held to the golden cases.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from wire import Wire, connect

from mplug.checkpoint import load_checkpoint
from mplug.inputs.images import decode_image
from mplug.inputs.pixels import letterbox_pixel_values, pixel_values
from mplug.inputs.tokenizer import Tokenizer
from mplug.network import MPlug
from mplug.server.command import TritonServer
from mplug.tasks.table import PUBLIC_MODELS

STAGES = {"vision_encoder", "text_encoder", "fusion_encoder", "text_decoder"}
TEXT = "a red apple to the left of a dog"
TOLERANCE = 1e-4
BLOCKED = -1e9


class Reference:
    """The network in PyTorch, one request at a time, the whole prefix at every token."""

    def __init__(self, checkpoint: Path) -> None:
        self.network: MPlug = load_checkpoint(checkpoint)[0].eval()
        self.config = self.network.config
        self.tokenizer = Tokenizer(checkpoint / "vocab.txt")

    def states(self, pictures: list[bytes], letterboxed: bool = False) -> torch.Tensor:
        """Image states `[1, F·N, W]`."""
        size = self.config.vision.image_size
        images = [decode_image(picture) for picture in pictures]
        pixels = [
            letterbox_pixel_values(image, size)[0] if letterboxed else pixel_values(image, size) for image in images
        ]
        return self.network.vision_encoder(torch.from_numpy(np.stack(pixels))).reshape(1, -1, 192)

    def text(self, text: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text states `[1, L, W]` and their mask."""
        ids, mask = (torch.from_numpy(array)[None] for array in self.tokenizer.encode(text, length))
        return self.network.text_encoder(ids, mask), mask

    def greedy(
        self,
        image: torch.Tensor,
        text: str,
        length: int,
        *,
        start: int,
        shortest: int,
        longest: int,
        allowed: range | None = None,
    ) -> list[int]:
        """Ids from the start token on."""
        states, mask = self.text(text, length)
        fused = self.network.fusion_encoder(image, states, mask)
        read, read_mask = self.network.decoder_input(*fused, mask)
        ids, end = [start], self.tokenizer.sep_id
        while len(ids) <= longest and ids[-1] != end:
            logits = self.network.text_decoder(torch.tensor([ids], dtype=torch.int32), read, read_mask)[0, -1]
            if len(ids) <= shortest:
                logits[end] = BLOCKED
            if allowed is not None:
                logits[: allowed.start] = logits[allowed.stop :] = BLOCKED
            ids.append(int(logits.argmax()))
        return ids


@pytest.fixture(scope="module")
def reference(every_task: Path) -> Iterator[Reference]:
    with torch.inference_mode():
        yield Reference(every_task)


@pytest.fixture(scope="module")
def wire(every_task_server: TritonServer) -> Iterator[Wire]:
    with connect(every_task_server, "grpc") as connection:
        yield connection


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (160, 90)) -> bytes:
    """Noise around a colour."""
    noise = np.random.default_rng(sum(colour)).integers(-60, 60, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture((200, 60, 60)), picture((40, 90, 220)), picture((90, 190, 80), (70, 140))]


def test_all_public_models_share_one_set_of_stages(every_task_server: TritonServer) -> None:
    assert set(every_task_server.models) == STAGES | set(PUBLIC_MODELS)


@pytest.mark.parametrize("images", [PICTURES[:1], PICTURES], ids=["image", "frames"])
def test_captions_from_fused_states(wire: Wire, reference: Reference, images: list[bytes]) -> None:
    prompt, tokenizer = reference.config.prompt, reference.tokenizer
    assert prompt and reference.config.caption_states == "fused"
    scores = []
    for asked in (None, "how many dogs"):
        extra = {} if asked is None else {"PROMPT": asked}
        answer = wire.ask("caption", IMAGE=images, NUM_BEAMS=1, MIN_LENGTH=2, MAX_LENGTH=12, **extra)
        text = asked or prompt
        wanted = reference.greedy(
            reference.states(images),
            text,
            len(tokenizer.pieces(text)) + 2,
            start=tokenizer.cls_id,
            shortest=2,
            longest=12,
        )
        assert answer["TOKEN_IDS"][0].tolist() == wanted
        scores.append(float(answer["SCORE"][0]))
    assert abs(scores[0] - scores[1]) > TOLERANCE  # the prompt is read


@pytest.mark.parametrize("images", [PICTURES[:1], PICTURES], ids=["image", "frames"])
def test_answers(wire: Wire, reference: Reference, images: list[bytes]) -> None:
    """The lengths of answers are the published ones, not those of captions, whose lengths the YAML gives."""
    answer = wire.ask("vqa", IMAGE=images, QUESTION=TEXT, NUM_BEAMS=1)
    wanted = reference.greedy(
        reference.states(images),
        TEXT,
        reference.config.max_text_length,
        start=reference.tokenizer.cls_id,
        shortest=1,
        longest=10,
    )
    assert answer["TOKEN_IDS"][0].tolist() == wanted


def test_boxes(wire: Wire, reference: Reference) -> None:
    """A vocabulary of 1,977 tokens has a box token per pixel of a 128-pixel side, and one more."""
    tokenizer, size = reference.tokenizer, reference.config.vision.image_size
    first = tokenizer.token_id("[unused340]")
    allowed = range(first, tokenizer.token_id(f"[unused{340 + size}]") + 1)
    assert len(allowed) == size + 1
    for image in PICTURES:
        answer = wire.ask("ground", IMAGE=image, EXPRESSION=TEXT)
        wanted = reference.greedy(
            reference.states([image], letterboxed=True),
            TEXT,
            reference.config.max_text_length,
            start=tokenizer.token_id("[unused339]"),
            shortest=0,
            longest=4,
            allowed=allowed,
        )
        assert answer["BOX_TOKENS"].tolist() == wanted[1:]
        width, height = Image.open(io.BytesIO(image)).size
        left, top, right, bottom = answer["BOX"]
        assert 0 <= left <= right <= width and 0 <= top <= bottom <= height


def test_embeddings_and_matches(wire: Wire, reference: Reference) -> None:
    network, length = reference.network, reference.config.max_text_length
    image = reference.states(PICTURES[:1])
    text, mask = reference.text(TEXT, length)
    feature = network.image_feature(image)[0].numpy()
    _, fused = network.fusion_encoder(image, text, mask)
    np.testing.assert_allclose(wire.ask("embed_image", IMAGE=PICTURES[0])["FEATURE"], feature, atol=TOLERANCE)
    wanted = network.text_feature(text)[0].numpy()
    np.testing.assert_allclose(wire.ask("embed_text", TEXT=TEXT)["FEATURE"], wanted, atol=TOLERANCE)
    answer = wire.ask("match", IMAGE=PICTURES[0], TEXT=[TEXT.encode(), b"a wolf"])
    assert answer["SIMILARITY"][0] == pytest.approx(float(feature @ wanted), abs=TOLERANCE)
    assert answer["SCORE"][0] == pytest.approx(float(network.match_head(fused[:, 0])[0, 1]), abs=TOLERANCE)


def test_judgements(wire: Wire, reference: Reference) -> None:
    network, length = reference.network, reference.config.max_text_length
    text, mask = reference.text(TEXT, length)
    tops = [network.fusion_encoder(reference.states([image]), text, mask)[1][:, 0] for image in PICTURES[:2]]
    pair = network.nlvr_head(torch.cat(tops, dim=1)).softmax(-1)[0].numpy()
    answer = wire.ask("nlvr", IMAGE=PICTURES[:2], STATEMENT=TEXT)
    assert answer["LABEL"].tolist() == [[b"false", b"true"][pair.argmax()]]
    np.testing.assert_allclose(answer["PROBABILITY"], [pair.max()], atol=TOLERANCE)
    wanted = network.entail_head(tops[0]).softmax(-1)[0].numpy()
    np.testing.assert_allclose(
        wire.ask("entail", IMAGE=PICTURES[0], HYPOTHESIS=TEXT)["PROBABILITY"], wanted, atol=TOLERANCE
    )


def test_what_was_built_is_told(every_task_server: TritonServer) -> None:
    info = json.loads((every_task_server.repository / "build_info.json").read_text())
    assert set(info["public_models"]) == set(PUBLIC_MODELS)
