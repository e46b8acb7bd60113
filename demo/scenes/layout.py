"""Where the objects of a scene stand: groups first, then the objects inside each group.

Pure geometry on seeded numbers. Sizes are pixels; a shape is (width, height) of a sprite with
its long side scaled to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from demo.scenes.grammar import AXIS_DOMINANCE, ORDER_MARGIN

REFERENCE_SIDE = 128  # the side ranges below are meant for an image of this size
# Long side of one sprite, pixels: by number of groups, then by number of objects in the group.
SIDE_RANGES = {
    1: {1: (28, 80), 2: (28, 60), 3: (24, 50), 4: (24, 48)},
    2: {1: (26, 64), 2: (24, 48), 3: (22, 40), 4: (20, 36)},
    3: {1: (24, 46), 2: (20, 36), 3: (18, 30), 4: (18, 28)},
    4: {1: (22, 40), 2: (18, 30), 3: (16, 26), 4: (16, 24)},
}
MARGIN = 1  # pixels that stay free at the border
SAFETY = 1.06  # rendered boxes differ from planned ones by a pixel; plan the relation that much clearer
TRIES = 24

# Cells of a group's objects, (column, row). Any two differ by 1 or more on an axis, so they never overlap.
FORMATIONS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0, 0),),),
    2: (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0, 0), (1, 0.5)), ((0, 0.5), (1, 0))),
    3: (
        ((0, 0), (1, 0), (2, 0)),
        ((0.5, 0), (0, 1), (1, 1)),
        ((0, 0), (1, 0), (0.5, 1)),
        ((0, 0), (0, 1), (1, 0.5)),
        ((0, 0), (0, 1), (0, 2)),
    ),
    4: (
        ((0, 0), (1, 0), (0, 1), (1, 1)),
        ((0, 0.3), (1, 0), (0, 1.3), (1, 1)),
        ((0, 0), (1, 0), (0.4, 1), (1.4, 1)),
        ((0, 0), (1, 0), (2, 0), (3, 0)),
    ),
}


@dataclass(frozen=True)
class Place:
    """Planned pixel rectangle of one sprite."""

    x: int
    y: int
    width: int
    height: int


@dataclass
class Cluster:
    """Objects of one group relative to the group's own corner, in pixels."""

    places: list[tuple[float, float, float, float]]  # x, y, width, height
    width: float
    height: float

    def scaled(self, factor: float) -> Cluster:
        """Return the group so many times as large."""
        places = [tuple(factor * value for value in place) for place in self.places]
        return Cluster(places, factor * self.width, factor * self.height)

    def at(self, x: float, y: float) -> list[Place]:
        """Return the objects' rectangles with the group's corner at x, y."""
        return [
            Place(round(x + dx), round(y + dy), max(2, round(width)), max(2, round(height)))
            for dx, dy, width, height in self.places
        ]


def plan_layout(random: Random, shapes: Sequence[Sequence[tuple[float, float]]], size: int) -> list[list[Place]]:
    """Return the rectangles of every group's objects inside a ``size`` x ``size`` image.

    ``shapes[g][i]`` is the shape of object i of group g. Two groups come out clearly side by side or
    one above the other; three and four with clearly different centres on the x axis. Raises
    ``ValueError`` when there are no groups or more than four.
    """
    if not 1 <= len(shapes) <= 4:
        raise ValueError(f"a scene has 1 to 4 groups, not {len(shapes)}")
    unit = size / REFERENCE_SIDE
    ranges = SIDE_RANGES[len(shapes)]
    clusters = [cluster_of(random, group, random.uniform(*ranges[len(group)]) * unit) for group in shapes]
    room = size - 2 * MARGIN
    if len(clusters) == 1:
        return [_place_alone(random, clusters[0], room)]
    if len(clusters) == 2:
        return _place_pair(random, clusters, room)
    return _place_row(random, clusters, room)


def cluster_of(random: Random, shapes: Sequence[tuple[float, float]], side: float) -> Cluster:
    """Return 1..4 objects of these shapes in a random formation; ``side``: long side of one, pixels."""
    formation = random.choice(FORMATIONS[len(shapes)])
    spread = random.uniform(1.04, 1.25) if len(shapes) > 1 else 1.0
    cell_width = side * max(width for width, _ in shapes) * spread + 1
    cell_height = side * max(height for _, height in shapes) * spread + 1
    places = []
    for (column, row), (width, height) in zip(formation, shapes, strict=True):
        width, height = width * side, height * side
        slack_x, slack_y = cell_width - 1 - width, cell_height - 1 - height
        x = column * cell_width + random.uniform(0.2, 0.8) * slack_x
        y = row * cell_height + random.uniform(0.2, 0.8) * slack_y
        places.append((x, y, width, height))
    left, top = min(place[0] for place in places), min(place[1] for place in places)
    places = [(x - left, y - top, width, height) for x, y, width, height in places]
    right, bottom = max(x + width for x, _, width, _ in places), max(y + height for _, y, _, height in places)
    return Cluster(places, right, bottom)


def _place_alone(random: Random, cluster: Cluster, room: float) -> list[Place]:
    cluster = cluster.scaled(min(1.0, room / cluster.width, room / cluster.height))
    x = MARGIN + random.random() * (room - cluster.width)
    y = MARGIN + random.random() * (room - cluster.height)
    return cluster.at(x, y)


def _place_pair(random: Random, clusters: list[Cluster], room: float) -> list[list[Place]]:
    sideways = random.random() < 0.5
    gap = 0.03 * room
    along = sum(cluster.width if sideways else cluster.height for cluster in clusters) + gap
    across = max(cluster.height if sideways else cluster.width for cluster in clusters)
    factor = min(1.0, room / along, room / across)
    first, second = (cluster.scaled(factor) for cluster in clusters)
    long1, wide1 = (first.width, first.height) if sideways else (first.height, first.width)
    long2, wide2 = (second.width, second.height) if sideways else (second.height, second.width)
    free = max(0.0, room - long1 - long2 - gap * factor)
    start, extra = sorted((random.random() * free, random.random() * free))
    near, far = start, long1 + extra + gap * factor
    offset = (far + long2 / 2) - (near + long1 / 2)  # of the centres, along the chosen axis
    limit = offset / (AXIS_DOMINANCE * SAFETY)
    middle1 = random.uniform(wide1 / 2, room - wide1 / 2)
    # Both ranges contain the middle of the room, so pulling the first there always makes them meet.
    low2, high2 = wide2 / 2, room - wide2 / 2
    middle1 = min(max(middle1, low2 - limit), high2 + limit)
    middle2 = random.uniform(max(low2, middle1 - limit), min(high2, middle1 + limit))
    side1, side2 = middle1 - wide1 / 2, middle2 - wide2 / 2
    if sideways:
        return [first.at(MARGIN + near, MARGIN + side1), second.at(MARGIN + far, MARGIN + side2)]
    return [first.at(MARGIN + side1, MARGIN + near), second.at(MARGIN + side2, MARGIN + far)]


def _place_row(random: Random, clusters: list[Cluster], room: float) -> list[list[Place]]:
    step = ORDER_MARGIN * SAFETY * room + 2
    shrink = 1.0
    for _ in range(TRIES):
        scaled = [c.scaled(min(shrink, 0.8 * room / c.width, 0.8 * room / c.height)) for c in clusters]
        corners = [(random.random() * (room - c.width), random.random() * (room - c.height)) for c in scaled]
        if _row_is_clear(scaled, corners, step):
            return [c.at(MARGIN + x, MARGIN + y) for c, (x, y) in zip(scaled, corners, strict=True)]
        shrink *= 0.98
    # Nothing fell into place: one column per group, each at its own height.
    column = room / len(clusters)
    groups = []
    for position, cluster in enumerate(clusters):
        cluster = cluster.scaled(min(1.0, (column - 2) / cluster.width, room / cluster.height))
        x = position * column + (column - cluster.width) / 2
        groups.append(cluster.at(MARGIN + x, MARGIN + random.random() * (room - cluster.height)))
    return groups


def _row_is_clear(clusters: list[Cluster], corners: list[tuple[float, float]], step: float) -> bool:
    for i, (a, (ax, ay)) in enumerate(zip(clusters, corners, strict=True)):
        for b, (bx, by) in zip(clusters[:i], corners[:i], strict=True):
            if abs(ax + a.width / 2 - bx - b.width / 2) < step:
                return False
            apart_x = ax >= bx + b.width + 1 or bx >= ax + a.width + 1
            apart_y = ay >= by + b.height + 1 or by >= ay + a.height + 1
            if not (apart_x or apart_y):
                return False
    return True
