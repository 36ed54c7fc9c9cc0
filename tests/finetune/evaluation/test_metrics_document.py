"""docs/metrics.md holds the tables that docs/metrics.py makes."""

import runpy
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def tables() -> dict:
    return runpy.run_path(str(DOCS / "metrics.py"))


@pytest.mark.parametrize("name", ["example_table", "difference_table"])
def test_its_distances_are_in_the_document(tables, name):
    assert "\n".join(tables[name]()) in (DOCS / "metrics.md").read_text()


def test_its_coverage_is_in_the_document(tables):
    document = (DOCS / "metrics.md").read_text()
    assert f"in {tables['SAMPLES']} simulated samples" in document
    written = dict.fromkeys(tables["SCORES"], 0)
    for line in document.splitlines():
        name, *cells = line.strip("| ").split(" | ")
        if name in written:
            draw, truth = tables["SCORES"][name]
            assert f"{100 * tables['t_coverage'](draw, truth, int(cells[0])):.0f} %" == cells[1]
            written[name] += 1
    assert set(written.values()) == {len(tables["CASES"])}


def test_one_percentile_over_both_masks_dilutes_a_false_island(tables):
    """By hand: 19 edge pixels agree and one is 5 away, of which MedPy sees 1 of 39."""
    truth = np.zeros((1, 40), bool)
    truth[0, :19] = True
    prediction = truth.copy()
    prediction[0, 23] = True
    assert tables["medpy_hd95"](prediction, truth, (1, 1)) == 0
    assert tables["hd95"](prediction, truth, (1, 1), definition="monai") == pytest.approx(0.25)
