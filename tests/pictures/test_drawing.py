"""Figures are drawn whole, whatever there is to see, and leave nothing behind."""

import gc
import subprocess
import sys
import weakref

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, KernelGATConv
from ika_lightning.pictures import Recorder
from ika_lightning.pictures.canvas import COLOURS, panels, shortened, to_pixels, to_png
from ika_lightning.pictures.results import draw_calibration, draw_confusion, draw_embeddings, draw_fit
from ika_lightning.pictures.similarity import draw_similarity
from ika_lightning.pictures.spectrum import correlation, draw_correlation, draw_density, frequencies, start_std
from ika_lightning.pictures.weights import draw_magnitude, draw_maps, draw_neighbourhoods


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def record(layer, length=6, sequences=2, **masks):
    layer.eval()
    with torch.no_grad(), Recorder(layer) as recorder:
        layer(*[torch.randn(sequences, length, layer.embed_dim)] * 3, need_weights=False, **masks)
    return recorder.recordings[""]


def figures():
    """Every kind of figure, of ordinary and of odd things."""
    heads, one = record(MIKAN(32, 8, batch_first=True)), record(MIKAN(4, 1, batch_first=True), length=1, sequences=1)
    words = [["of", "a", "$\\frac{$", "  ", "\n", "ｗｉｄｅ 字"]] * 2
    long = record(IKAN(16, 16, batch_first=True, stationary=True), length=300)
    yield "maps", lambda: draw_maps(heads)
    yield "maps with names", lambda: draw_maps(heads, (words, words))
    yield "maps of one token", lambda: draw_maps(one)
    yield "maps of many tokens and heads", lambda: draw_maps(long)
    yield (
        "maps of padding",
        lambda: draw_maps(record(RBF(8, 2, batch_first=True), key_padding_mask=torch.arange(6).expand(2, 6) > 1)),
    )
    yield "surfaces", lambda: draw_similarity(heads)
    yield "a surface", lambda: draw_similarity(one)
    yield "rays", lambda: draw_similarity(long)
    yield "a formula", lambda: draw_similarity(record(RBF(8, 2, batch_first=True)))
    for name, recording in (("density", heads), ("a density", one), ("a density of many heads", long)):
        history = [(10 * k, frequencies(recording)) for k in range(4)]
        yield name, lambda history=history, recording=recording: draw_density(history, start_std(recording), "layer")
    yield "correlation", lambda: draw_correlation(correlation(heads), "a.layer.with.a.very.long.name." * 3)
    yield "correlation of many heads", lambda: draw_correlation(torch.eye(32), "layer")
    yield "magnitude", lambda: draw_magnitude(heads)
    yield "magnitude of one token", lambda: draw_magnitude(one)
    for edges in ([[0, 1, 2], [1, 2, 0]], [[], []]):
        layer = KernelGATConv(4, 4, heads=2).eval()
        with torch.no_grad(), Recorder(layer) as recorder:
            layer(torch.randn(3, 4), torch.tensor(edges, dtype=torch.int64))
        yield f"neighbours {edges}", lambda r=recorder.recordings[""]: draw_neighbourhoods(r, ["a", "b", "c"])
        yield f"magnitude {edges}", lambda r=recorder.recordings[""]: draw_magnitude(r)
    row = torch.arange(9)
    yield "fit", lambda: draw_fit(row, row / 2.0, row / 2.1, "a unit with quite a long name that goes on")
    yield "fit of one", lambda: draw_fit(row[:1], row[:1], row[:1], "m")
    ends = row / 2.0 - 0.3, row / 2.0 + 0.2
    yield "fit of a series with intervals", lambda: draw_fit(row, row / 2.0, row / 2.1, "m", ends)
    yield "fit of rows with intervals", lambda: draw_fit(2 * row, row / 2.0, row / 2.1, "m", ends)
    yield "calibration", lambda: draw_calibration(torch.randn(31))
    yield "calibration of one", lambda: draw_calibration(torch.tensor([-1.5]))
    yield "confusion", lambda: draw_confusion(torch.eye(3).long(), ["a", "b", "c"])
    yield (
        "confusion of many",
        lambda: draw_confusion(torch.zeros(60, 60).long(), [f"class number {i}" for i in range(60)]),
    )
    yield "embeddings", lambda: draw_embeddings(torch.randn(50, 3), torch.arange(50) % 13 - 1, list("abcdefghijkl"))


@pytest.mark.parametrize("draw", [pytest.param(draw, id=name) for name, draw in figures()])
def test_every_label_is_inside_its_figure(draw) -> None:
    figure = draw()
    pixels = to_pixels(figure)
    assert np.ptp(pixels) > 100  # there is something to see
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (border > 250).all()
    assert to_png(pixels)[:4] == b"\x89PNG"


def test_intervals_are_drawn_where_they_are() -> None:
    row = torch.tensor([4, 0, 2])
    lower, upper = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])
    figure = draw_fit(row, (lower + upper) / 2, torch.tensor([1.5, 9.0, 3.5]), "m", (lower, upper))

    def bars(panel):
        (drawn,) = [lines for lines in panel.collections if lines.get_label() == "interval"]
        return [segment.tolist() for segment in drawn.get_segments()]

    over, _, residuals = figure.axes
    assert bars(over) == [[[1.0, 2.0], [1.0, 4.0]], [[3.0, 3.0], [3.0, 6.0]], [[5.0, 1.0], [5.0, 2.0]]]
    assert bars(residuals) == [[[1.0, -1.0], [1.0, 1.0]], [[3.0, -1.5], [3.0, 1.5]], [[5.0, -0.5], [5.0, 0.5]]]


def test_nothing_is_left_behind() -> None:
    settings = dict(matplotlib.rcParams)
    recording = record(MIKAN(8, 2, batch_first=True))
    figure = draw_maps(recording)
    to_pixels(figure)
    assert dict(matplotlib.rcParams) == settings and plt.get_fignums() == []
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None


def test_the_style_is_ours_whatever_the_user_has_set() -> None:
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40}):
        pixels = to_pixels(draw_similarity(record(IKAN(8, 2, batch_first=True))))
    assert np.array_equal(pixels, to_pixels(draw_similarity(record_again())))


def record_again():
    torch.manual_seed(0)
    return record(IKAN(8, 2, batch_first=True))


def test_colours_can_be_told_apart_in_grey_or_by_the_colour_blind() -> None:
    # Vienot et al. 1999: what a deuteranope sees of linear red, green and blue
    seen = np.array([[0.29275, 0.70725, -0.02978], [0.29275, 0.70725, -0.02978], [-0.02234, 0.02234, 1.0]])
    colours = np.array([seen @ np.power(to_rgb(colour), 2.2) for colour in COLOURS])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[np.triu_indices(len(COLOURS), 1)]
    assert apart.min() > 0.05


def test_panels_do_not_overlap() -> None:
    figure, axes = panels(2, 3, "x")
    boxes = [panel.get_position() for row in axes for panel in row]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert shortened("x" * 100, 5) == "xxxx…" and figure.texts[0].get_text() == "x"


def test_dot_product_needs_no_picture_of_its_similarity() -> None:
    assert not record(DotProduct(8, 2, batch_first=True)).learned


def test_start_up_does_not_wait_for_figures() -> None:
    code = "import sys, ika_lightning.pictures.weights; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
