"""How large the model is and how long each part measures: `base`, which is published, and `quick`, a rehearsal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

#: Tokens of the one caption that is timed, and its beams: what the published base model is run with.
TOKENS = 20
BEAMS = 5

#: Special tokens, where BERT's vocabulary has them.
PAD_ID, CLS_ID, SEP_ID = 0, 101, 102


@dataclass(frozen=True)
class ModelSizes:
    """A captioner in our layout, and a BLIP of the same shape. Lengths in pixels, layers and features."""

    image_size: int = 384
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    hidden_size: int = 768
    intermediate_size: int = 3072
    heads: int = 12
    decoder_layers: int = 12
    vocab_size: int = 30_522
    max_positions: int = 512

    @property
    def image_tokens(self) -> int:
        """Image states that the decoder reads: the patches behind the class token."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Preset:
    """What one run measures. Durations in seconds."""

    name: str
    sizes: ModelSizes
    #: one_caption: rounds of all contenders, and in how many of them the slow ones take part
    rounds: int = 12
    slow_rounds: int = 3
    #: throughput: clients per setting, warm-up and window of each setting
    clients: tuple[int, ...] = (1, 4, 16, 32)
    int8_clients: tuple[int, ...] = (1, 16)
    unbatched_clients: tuple[int, ...] = (16,)
    lengths: tuple[int, ...] = tuple(range(8, 21))
    warm_seconds: float = 10.0
    #: Until the repeated pictures are all in the cache and every decoder slot is in use.
    fill_seconds: float = 40.0
    window_seconds: float = 25.0
    #: A window of the slow baseline goes on until this many captions are done, or for so long.
    least_captions: int = 16
    longest_window: float = 60.0
    pictures: int = 1024
    #: decode_steps
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    positions: tuple[int, ...] = (3, 20)
    steps: int = 12
    #: Matrices and arrays that the machine's limits are measured with.
    matrix_side: int = 2048
    array_mib: int = 256
    #: soak
    requests: int = 2000
    soak_clients: int = 32
    #: By part: it is ended when it takes longer.
    limits: dict[str, float] = field(
        default_factory=lambda: {
            "one_caption": 300.0,
            "throughput": 840.0,
            "decode_steps": 180.0,
            "soak": 300.0,
            "tasks": 900.0,  # its repository is built in it
        }
    )

    def settings(self) -> dict[str, Any]:
        """Return the settings as written to a result file."""
        return asdict(self)


PRESETS = {
    "base": Preset("base", ModelSizes()),
    "quick": Preset(
        "quick",
        ModelSizes(
            image_size=64,
            vision_width=128,
            vision_layers=2,
            hidden_size=128,
            intermediate_size=256,
            heads=2,
            decoder_layers=2,
            vocab_size=1_200,
            max_positions=64,
        ),
        rounds=6,
        slow_rounds=3,
        clients=(1, 4),
        int8_clients=(4,),
        unbatched_clients=(4,),
        warm_seconds=1.0,
        fill_seconds=2.0,
        window_seconds=3.0,
        least_captions=4,
        longest_window=6.0,
        pictures=128,
        batches=(1, 2, 4),
        steps=5,
        matrix_side=512,
        array_mib=32,
        requests=300,
        soak_clients=16,
        limits={"one_caption": 120.0, "throughput": 180.0, "decode_steps": 120.0, "soak": 120.0, "tasks": 180.0},
    ),
}
