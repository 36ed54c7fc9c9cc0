"""Curves of a run's losses."""

import json

import pytest

from pretrain.engine import figures


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a run with so many lines of metrics; returns the figure."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))

    def draw(lines: int):
        rows = [{"step": 5 * i + 5, "loss": 1 / (i + 1), "mae": 2 / (i + 1)} for i in range(lines)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "metrics.jsonl").write_text(text)
        figures.draw_losses(tmp_path, ("loss", "mae"))
        return kept[-1]

    return draw


def test_a_short_run_has_one_line_per_loss(drawn):
    figure = drawn(15)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "mae"]
    for axes, factor in zip(figure.axes, (1, 2), strict=True):
        (line,) = axes.lines
        assert list(line.get_xdata()) == [5 * i + 5 for i in range(15)]
        assert list(line.get_ydata()) == [factor / (i + 1) for i in range(15)]
        assert axes.get_legend() is None


def test_a_long_run_has_a_running_mean_too(drawn):
    for axes in drawn(40).axes:
        loss, mean = axes.lines
        values = loss.get_ydata()
        assert list(mean.get_ydata()) == pytest.approx(
            [sum(values[i : i + 4]) / 4 for i in range(37)]
        )
        assert list(mean.get_xdata()) == list(loss.get_xdata())[3:]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            "loss",
            "running mean",
        ]
