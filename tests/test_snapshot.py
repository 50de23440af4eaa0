"""The one fold of events."""

import numpy as np
import pytest

from dalle_server.errors import DalleServerError, GenerationCancelled, GenerationFailed
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
    unwrap,
)
from dalle_server.request import ImageKey
from dalle_server.snapshot import Snapshot

PIXELS = np.zeros((8, 8, 3), np.uint8)


def image(index: int) -> GeneratedImage:
    return GeneratedImage(index, ImageKey(1, index), PIXELS + index, np.zeros(4, np.int32))


def folded(*events: Event) -> Snapshot:
    snapshot = Snapshot()
    for event in events:
        snapshot = snapshot.fold(event)
    return snapshot


def test_nothing_is_known_before_the_first_event() -> None:
    nothing = Snapshot()
    assert (nothing.position, nothing.queue_s, nothing.tokens_done, nothing.eta_s) == (None, None, 0, None)
    assert (nothing.images, dict(nothing.previews), nothing.shown, nothing.end) == ((), {}, None, None)


def test_the_newest_word_of_each_kind_counts() -> None:
    snapshot = folded(Queued(3), Queued(1))
    assert snapshot.position == 1
    snapshot = snapshot.fold(Started(0.5)).fold(Progress(2, 8, None)).fold(Progress(6, 8, 1.5))
    assert (snapshot.position, snapshot.queue_s, snapshot.tokens_done, snapshot.eta_s) == (0, 0.5, 6, 1.5)


def test_a_finished_picture_replaces_its_preview_and_takes_its_place() -> None:
    before = folded(Preview(0, 1, PIXELS), Preview(1, 1, PIXELS), Preview(1, 2, PIXELS + 9), ImageReady(image(1)))
    assert {index: preview.tokens_done for index, preview in before.previews.items()} == {0: 1}
    after = before.fold(ImageReady(image(0)))
    assert [each.index for each in after.images] == [0, 1]
    assert after.shown is after.images[0].pixels
    assert [each.index for each in before.images] == [1], "a snapshot that someone looks at does not change"
    assert [each.index for each in after.fold(ImageReady(image(0))).images] == [0, 1], "told twice, it is there once"


@pytest.mark.parametrize("end", [Done((image(0),), 0.1, 0.2), Failed(GenerationFailed("no")), Cancelled("left")])
def test_the_end_is_kept_with_what_was_there(end: Event) -> None:
    snapshot = folded(ImageReady(image(0)), end)
    assert snapshot.end is end
    assert len(snapshot.images) == 1


def test_unwrap_gives_the_pictures_or_raises_what_happened() -> None:
    done = Done((image(0), image(1)), 0.1, 0.2)
    assert unwrap(done) is done.images
    failure: DalleServerError = GenerationFailed("the logits were not finite")
    with pytest.raises(GenerationFailed) as caught:
        unwrap(Failed(failure))
    assert caught.value is failure
    with pytest.raises(GenerationCancelled, match="left"):
        unwrap(Cancelled("left"))
