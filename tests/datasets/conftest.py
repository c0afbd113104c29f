"""What tests of data sets share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.pictures import put


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        size = (40, 30) if number == 2 else (120, 90)  # one is smaller than the crop
        put(folder / f"{number}.png", size, number)
    return folder
