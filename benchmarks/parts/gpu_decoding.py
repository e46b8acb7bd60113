"""Decoding on a GPU with PyTorch: steps and captions per second, beside plain PyTorch and torch.compile.

    python -m benchmarks.parts.gpu_decoding [--device cuda:0] [--precision fp16] [--result FILE]
    python -m benchmarks.parts.gpu_decoding --device cpu --preset quick        # a rehearsal, in seconds

Needs PyTorch, NumPy and PyYAML, and no checkpoint: weights are random. Contenders run the same network and search
over the same caches, and differ in how a step is launched:

- recorded: as served, a CUDA graph; four steps are launched before the first one's choices are read
- plain: operator by operator
- compiled: by torch.compile; steps alone
- compiled and recorded: both; steps alone

They take turns, so that a clock that changes changes all of them. A floor is the time in which weights and caches are
read once at the bandwidth that a copy reaches on this device. A caption is a picture, 20 tokens and 5 beams; pictures
are encoded on the device and their states stay there. First of all requests that differ in all they may are decoded
together and one at a time, in fp64, where rounding decides nothing: their sequences have to be the same. How many are
so in the precision of the timings is told as well; batches of other sizes are summed in another order.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine
from benchmarks.measure.decoding_requests import decode, mixed_requests, requests_for
from benchmarks.measure.figures import goal
from benchmarks.measure.floors import WEIGHT_BYTES, step_work
from benchmarks.measure.searches import search_at
from benchmarks.presets import BEAMS, PRESETS, SEP_ID, TOKENS, ModelSizes, Preset
from benchmarks.workspace import say, write_result
from mplug.config import GenerationConfig, MPlugConfig, TextConfig, VisionConfig
from mplug.network import MPlug
from mplug.network.graphs import graphs_of
from mplug.runtime.interface import RuntimeUnavailable, threads
from mplug.runtime.room import Room
from mplug.runtime.torch_decoder import CHUNK, TorchDecoder
from mplug.runtime.torch_device import TYPES, sum_in_fp32, torch_device

#: Requests in flight, each a row of the tables.
SLOTS = (1, 8, 32)
CONTENDERS = ("recorded", "plain", "compiled", "compiled and recorded")
#: Position that steps are timed at: the middle of a caption.
POSITION = TOKENS // 2
#: Pictures that are encoded together.
ENCODED_TOGETHER = 16
#: Weights as initialised tell pictures hardly apart, and every search would be close.
SPREAD = 3.0
#: Bytes that are copied to measure the bandwidth, and times.
COPIED, COPIES = 1 << 30, 10


def main() -> int:
    """Measure, and write or print the result. The exit code is 1 if requests decoded together differ."""
    options = _parse()
    try:
        device = torch_device(options.device)
    except RuntimeUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sum_in_fp32()
    torch.set_num_threads(threads())
    preset = PRESETS[options.preset]
    document = measure(preset, device, options)
    write_result(document, options.result)
    print(tables(document["results"]), file=sys.stderr)
    return 0 if all(each["reached"] for each in document["goals"]) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", metavar="cuda:N", help="or cpu, to rehearse (default: cuda:0)")
    parser.add_argument("--precision", choices=TYPES, default="fp16", help="of the timings (default: %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="base", help="base, or quick: a rehearsal at tiny sizes")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME", help="(default: all four)"
    )
    parser.add_argument("--slots", nargs="+", type=int, default=SLOTS, metavar="N", help="(default: 1 8 32)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="(default: 7)")
    parser.add_argument("--captions", type=int, default=8, metavar="N", help="of each slot and round (default: 8)")
    parser.add_argument("--mixed", type=int, default=256, metavar="N", help="requests to compare (default: 256)")
    parser.add_argument("--result", type=Path, metavar="FILE", help="the JSON to write (default: print it)")
    return parser.parse_args()


def measure(preset: Preset, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Return the result file's document."""
    sizes = preset.sizes
    say(f"{options.mixed} requests together and one at a time")
    network = random_network(sizes).to(device)
    same = {}
    for precision, dtype in (("fp64", torch.float64), (options.precision, TYPES[options.precision])):
        same[precision] = compare_mixed(network.to(dtype), device, options.mixed, max(options.slots))
        say(f"{same[precision]} of them the same in {precision}")
    bandwidth = copy_bandwidth(device, COPIED if preset.name == "base" else COPIED >> 6)
    decoders = {name: contender(name, network, device) for name in options.contenders}
    reasons: dict[str, str] = {}
    rows = []
    for slots in options.slots:
        for name, decoder in [*decoders.items()]:
            try:
                time_step(decoder, sizes, slots, rounds=1)  # compiles
            except Exception as error:  # torch.compile needs a compiler that may not be there
                del decoders[name]
                reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                say(f"{name}: left out from {slots} slots on, {reasons[name]}")
        floor = step_work(sizes, options.precision, sequences=slots, beams=BEAMS, position=POSITION).bytes / bandwidth
        steps = in_turns(
            decoders, lambda each, slots=slots: time_step(each, sizes, slots, preset.steps), options.rounds
        )
        # Requests that come and go take many sizes of a step, and each would be compiled by itself.
        captions = in_turns(
            {name: each for name, each in decoders.items() if not name.startswith("compiled")},
            lambda each, slots=slots: time_captions(each, network, device, slots, options.captions),
            max(1, options.rounds // 2),
        )
        for name in decoders:
            row = {
                "slots": slots,
                "contender": name,
                "step_seconds": round(steps[name], 7),
                "steps_per_second": round(1 / steps[name], 1),
                "floor_seconds": round(floor, 7),
                "times_floor": round(steps[name] / floor, 2),
                "captions_per_second": round(1 / captions[name], 3) if name in captions else None,
            }
            rows.append(row)
            say(", ".join(f"{key} {value}" for key, value in row.items()))
    return {
        "part": "gpu_decoding",
        "preset": preset.name,
        "precision": options.precision,
        "device": describe(device),
        "machine": machine.describe() | {"environment": machine.environment()},
        "results": {
            "copy_bandwidth": round(bandwidth),
            "weight_megabytes": round(WEIGHT_BYTES[options.precision] * _parameters(network.text_decoder) / 1e6, 1),
            "mixed_requests": options.mixed,
            "mixed_same": same,  # by precision
            "rows": rows,
            "left_out": reasons,
        },
        "goals": [
            goal("requests together as one at a time", f"{options.mixed}", same["fp64"], same["fp64"] == options.mixed)
        ],
    }


def random_network(sizes: ModelSizes) -> MPlug:
    """Return a captioner of these sizes with random weights, fp32 on the CPU."""
    config = MPlugConfig(
        vision=VisionConfig(sizes.image_size, sizes.patch_size, sizes.vision_width, sizes.vision_layers),
        text=TextConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            heads=sizes.heads,
            max_positions=sizes.max_positions,
            type_vocab_size=2,
            layer_norm_eps=1e-12,
            dropout=0.0,
            num_hidden_layers=6,
            text_encoder_layers=6,
            fusion_layers=6,
            stride_layer=3,
            text_decode_layers=sizes.decoder_layers,
        ),
        generation=GenerationConfig(BEAMS, TOKENS, TOKENS),
        tasks=("image-captioning",),
        embed_dim=256,
        max_text_length=25,
    )
    network = MPlug(config, parts=("vision_encoder", "text_decoder")).eval()
    network.initialise(seed=0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(SPREAD)
    return network.requires_grad_(False)


def contender(name: str, network: MPlug, device: torch.device) -> TorchDecoder:
    """Return the decoder whose steps are launched in this way."""
    graphs = {spec.name: graph for spec, graph in graphs_of(network, SEP_ID)}
    text, step = network.config.text, graphs["text_decoder_step"]
    if name.startswith("compiled"):
        torch._dynamo.config.recompile_limit = 64  # beyond it PyTorch would run a further size plainly, in silence
        step = torch.compile(step, dynamic=False)
    how: dict[str, Any] = {}  # as served
    if not name.endswith("recorded"):
        how = {"chunk": 1, "record": called_again}
    elif device.type == "cpu":  # a rehearsal: as on a GPU, but for the recording
        how = {"chunk": CHUNK, "record": called_again}
    sizes = {"layers": text.text_decode_layers, "heads": text.heads, "head_width": text.head_width}
    return TorchDecoder(graphs["text_decoder_prefill"], step, sizes, device, **how)


def called_again(work: Callable[[], None]) -> Callable[[], None]:
    """Stand in for a recording: the work itself, operator by operator."""
    return work


def compare_mixed(network: MPlug, device: torch.device, number: int, slots: int) -> int:
    """Return how many of `number` mixed requests get the same sequences together as one at a time."""
    decoder = contender("recorded", network, device)
    requests = mixed_requests(network, device, number)
    together, alone = decode(decoder, requests, slots), decode(decoder, requests, 1)
    return sum(
        [found.token_ids for found in one] == [found.token_ids for found in other]
        for one, other in zip(together, alone, strict=True)
    )


def in_turns(decoders: dict[str, TorchDecoder], run: Callable[[TorchDecoder], float], rounds: int) -> dict[str, float]:
    """Return each contender's median of `rounds` runs, of which all contenders take one at a time."""
    taken: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(rounds + 1):
        for name, decoder in decoders.items():
            seconds = run(decoder)
            if number:  # the first records
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def time_step(decoder: TorchDecoder, sizes: ModelSizes, slots: int, rounds: int) -> float:
    """Return seconds of a step of so many slots; steps stay at their position."""
    random = np.random.default_rng(0)
    states = sizes.image_tokens
    decoder.reserve(Room.rounded(slots, TOKENS, BEAMS, states, max_slots=slots))
    search = search_at(POSITION, states, sizes.vocab_size, random)
    for slot in range(slots):
        decoder.admit(slot, random.standard_normal((states, sizes.hidden_size), np.float32))
        decoder.load(slot, search)
    for _ in range(3):  # loads kernels, records
        decoder.step(slots, BEAMS, decoder.chunk)
    began = time.perf_counter()
    for _ in range(rounds):
        decoder.step(slots, BEAMS, decoder.chunk)
    return (time.perf_counter() - began) / (rounds * decoder.chunk)


def time_captions(decoder: TorchDecoder, network: MPlug, device: torch.device, slots: int, each: int) -> float:
    """Return seconds per caption with so many in flight: pictures encoded, then decoded as slots become free."""
    number = slots * each
    generator = torch.Generator().manual_seed(0)
    side = network.config.vision.image_size
    pixels = torch.randn((min(number, ENCODED_TOGETHER), 3, side, side), generator=generator)
    began = time.perf_counter()
    with torch.inference_mode():
        states = []
        while len(states) < number:
            batch = pixels[: min(slots, ENCODED_TOGETHER, number - len(states))]
            states += network.vision_encoder(batch.to(device, next(network.parameters()).dtype)).float()
    decode(decoder, requests_for(states, network), slots)
    return (time.perf_counter() - began) / number


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Return bytes per second, read and written, of the fastest of some copies within the device's memory."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def seconds() -> float:
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return 2 * size / min(seconds() for _ in range(COPIES))


def describe(device: torch.device) -> dict[str, Any]:
    """Return the device's name and what it is driven by."""
    if device.type != "cuda":
        return {"name": "cpu", "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tables(results: dict[str, Any]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| slots | contender | ms a step | times the floor | captions/s |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['slots']} | {row['contender']} | {row['step_seconds'] * 1e3:.3f} | {row['times_floor']:.1f} "
        f"| {row['captions_per_second'] or '-'} |"
        for row in results["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("always", message="steps of .* slots run without a CUDA graph")
    sys.exit(main())
