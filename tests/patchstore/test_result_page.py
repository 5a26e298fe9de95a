"""An answer as a file of HTML."""

import numpy as np
from sqlalchemy import create_engine

from patchstore.query import Asked
from patchstore.result_page import render


def test_a_region_of_less_than_a_pixel_of_the_page_is_drawn() -> None:
    picture = np.zeros((4000, 6000, 3), np.uint8)
    asked = Asked(np.ones(3, np.float32), box=(5990, 3990, 8, 8), picture=picture)
    page = render(create_engine("sqlite://"), "title", "about", "cosine", asked, [])
    assert page.count('<img src="data:image/jpeg;base64,') == 2
