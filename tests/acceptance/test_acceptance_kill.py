"""`kill -9` at random moments loses nothing and stores nothing twice.

`python -m benchmarks.kill --rounds 20` is the long version, over 200 images.
"""

from pathlib import Path

import pytest

from benchmarks.kill import compare, make_images
from patchstore.bench.home import SpecOptions


@pytest.mark.slow
def test_killed_runs_and_one_undisturbed_one_leave_the_rows_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    make_images(40, pool, seed=0)
    options = SpecOptions(patch_size=96, stride=96)
    rounds, differences, _machine = compare(pool, tmp_path / "watched", options, rounds=4, seed=1)
    assert differences == []
    assert any(done.phase == "work" for done in rounds)
