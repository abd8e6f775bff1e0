from __future__ import annotations

import numpy as np
import pytest

from unetdiff.data.crops import place_around
from unetdiff.data.images import crop_window
from unetdiff.data.mask_options import WarpConfig
from unetdiff.data.warp import source_coordinates, warped_crop

SPACE, SIZE = (40, 30), (8, 12)


def test_reaches_every_offset_that_holds_the_position():
    found = set()
    for draw in np.linspace(0, 0.999, 50):
        place = place_around(np.array([2]), (10,), (4,), np.array([draw]))
        found.add(int(np.floor(place[0] * 7)))
    assert found == {0, 1, 2}
    assert place_around(np.array([1]), (3,), (4,), np.array([0.5]))[0] * 1 < 1  # larger crops take the whole axis


@pytest.mark.parametrize("at", [(20, 15), (0, 0), (39, 3)])
def test_a_warped_crop_holds_the_position(at: tuple[int, int]):
    """Where a crop within the image can: in its middle always, at a corner unless the warp moves away from it."""
    settings = WarpConfig(elastic=6, rotation=180, scale=0.3, shear=10)
    mask = np.zeros(SPACE, np.int64)
    mask[at] = 1
    places, held, could = set(), 0, 0
    for position in range(60):
        coordinates = source_coordinates(SIZE, position, 0, settings)
        place = place_around(np.array(at), SPACE, SIZE, np.random.default_rng(position).uniform(0, 1, 2), coordinates)
        window = crop_window(SPACE, SIZE, place)
        crop = warped_crop(lambda w: (mask[w][..., None], mask[w]), SPACE, window, position, seed=0, settings=settings)
        places.add(tuple(part.start for part in window))
        held += 1 in crop[1]
        offsets = np.array(at)[:, None, None] - np.rint(coordinates)
        could += bool(((offsets >= 0) & (offsets <= np.array([32, 18])[:, None, None])).all(0).any())
    assert held >= could
    assert could == 60 or at != (20, 15)
    assert len(places) > (30 if at == (20, 15) else 5)


def test_without_a_warp_positions_in_the_crop_are_equally_likely():
    """Coordinates of a crop that does not move: the same offsets as without, each as often."""
    still = source_coordinates((4,), 0, 0, WarpConfig())
    draws = (np.arange(300) + 0.5) / 300
    for at in (0, 2, 5, 9):
        starts = [
            [crop_window((10,), (4,), place_around(np.array([at]), (10,), (4,), np.array([draw]), given))[0].start
             for draw in draws]
            for given in (None, still)
        ]  # fmt: skip
        assert (
            np.unique(starts[0], return_counts=True)[1].tolist() == np.unique(starts[1], return_counts=True)[1].tolist()
        )
        assert set(starts[0]) == set(starts[1])
