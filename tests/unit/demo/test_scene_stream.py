"""Streams of fresh scenes."""

from __future__ import annotations

from demo.scene_stream import SceneRecords


def test_a_stream_of_scenes_can_be_entered_anywhere():
    stream = SceneRecords("vqa", ("noto",), 2, texts=2)
    batches = [stream.batch(index) for index in range(3)]
    again = SceneRecords("vqa", ("noto",), 2, texts=2).batch(2)
    assert [r.question for r in again] == [r.question for r in batches[2]] != [r.question for r in batches[1]]
    assert all((a.image == b.image).all() for a, b in zip(again, batches[2], strict=True))
    assert (stream.batch(0)[0].image == batches[0][0].image).all()
    other = SceneRecords("vqa", ("noto",), 2, texts=2, rank=1).batch(0)
    assert not (other[0].image == batches[0][0].image).all()
