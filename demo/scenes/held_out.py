"""What training never sees: some pairs of classes, and the seeds of the validation and test splits.

The drawing style that is held out stands in ``emoji_sprites``. The pairs are a fixed share of all, chosen by a
hash of the two names: the same on every machine, whatever order or number the classes have. A class does not
pair with itself.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from itertools import combinations

from demo.scenes.classes import load_classes

#: Seeds of splits (``scene_splits``), and those of their single scenes, which are made from them.
RESERVED_SEEDS = range(20_000, 100_000)
SEEDS_PER_SPLIT = 1_000_000  # item seeds lie above all 32-bit numbers
RESERVED_ITEM_SEEDS = range(RESERVED_SEEDS.start * SEEDS_PER_SPLIT, RESERVED_SEEDS.stop * SEEDS_PER_SPLIT)

SHARE = 0.04  # of all pairs
SALT = "held-out pairs 1"  # another salt, another choice: every test split and checkpoint would be void


def check_training_seed(seed: int) -> int:
    """Return the seed. Raises ``ValueError`` for one that belongs to a validation or test split."""
    for reserved in (RESERVED_SEEDS, RESERVED_ITEM_SEEDS):
        if seed in reserved:
            raise ValueError(
                f"seed {seed} is kept for validation and test ({reserved.start} to {reserved.stop - 1}): "
                "train with another"
            )
    return seed


def is_held_out(first: str, second: str) -> bool:
    """Return whether two class names, in either order, are never shown together in training."""
    if first == second:
        return False
    text = "|".join((SALT, *sorted((first, second))))
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < SHARE * 2**64


@cache
def held_out_pairs() -> tuple[tuple[int, int], ...]:
    """Return the class indices of all such pairs, the lower one first, in order."""
    classes = load_classes()
    return tuple((a.index, b.index) for a, b in combinations(classes, 2) if is_held_out(a.name, b.name))


@cache
def partners() -> tuple[frozenset[int], ...]:
    """Return, by class index, the classes that training never shows beside it."""
    sets: list[set[int]] = [set() for _ in load_classes()]
    for one, two in held_out_pairs():
        sets[one].add(two)
        sets[two].add(one)
    return tuple(map(frozenset, sets))
