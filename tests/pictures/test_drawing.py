"""Figures are drawn whole, whatever there is to see, and leave nothing behind."""

import gc
import re
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
from ika_lightning.pictures.canvas import (
    COLOURS,
    WIDEST,
    caption_of,
    category_styles,
    panels,
    shortened,
    to_pixels,
    to_png,
    to_svg,
)
from ika_lightning.pictures.history import History
from ika_lightning.pictures.parts import draw_parts, parts
from ika_lightning.pictures.results import draw_calibration, draw_confusion, draw_embeddings, draw_fit
from ika_lightning.pictures.similarity import draw_similarity
from ika_lightning.pictures.spectrum import (
    Frequencies,
    correlation,
    draw_correlation,
    draw_density,
    frequencies,
    start_std,
)
from ika_lightning.pictures.weights import draw_alignment, draw_magnitude, draw_maps, draw_neighbourhoods, draw_tokens


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
    yield "tokens", lambda: draw_tokens(heads, words)
    yield "a token", lambda: draw_tokens(one, [["a"]])
    yield "alignment", lambda: draw_alignment(heads, (words, [each[::-1] for each in words]))
    made = [(step, parts(IKAN(32, 8, p="learned").core)) for step in (0, 10, 20)]
    yield "parts", lambda: draw_parts(made, "layer")
    yield "parts at one moment", lambda: draw_parts(made[:1], "layer")
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
    many = [f"class number {i}" for i in range(24)]
    asked = torch.arange(9)
    yield "embeddings of many", lambda: draw_embeddings(torch.randn(50, 3), torch.arange(50) % 24, many, asked, asked)


@pytest.mark.parametrize("draw", [pytest.param(draw, id=name) for name, draw in figures()])
def test_every_label_is_inside_its_figure(draw) -> None:
    figure = draw()
    pixels = to_pixels(figure)
    assert np.ptp(pixels) > 100  # there is something to see
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (border > 250).all()
    assert to_png(pixels)[:4] == b"\x89PNG"
    # a newcomer is told what it is, of how many, and a card is wide enough for it
    assert len(caption_of(figure)) > 60 and re.search(r"\d|\ball\b|\bonly\b", caption_of(figure))
    assert figure.get_size_inches()[0] <= WIDEST
    assert to_svg(figure) == to_svg(figure)


def test_intervals_are_drawn_where_they_are() -> None:
    row = torch.tensor([4, 0, 2])
    lower, upper = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])
    figure = draw_fit(row, (lower + upper) / 2, torch.tensor([1.5, 9.0, 3.5]), "m", (lower, upper))

    def bars(panel):
        (drawn,) = [lines for lines in panel.collections if lines.get_label() == "interval"]
        return [segment.tolist() for segment in drawn.get_segments()]

    over, residuals, _ = figure.axes
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


class TestCaptions:
    """Each says what is shown, of what, how many of how many, and whether something is cut."""

    def test_attention(self) -> None:
        figure = draw_maps(record(IKAN(32, 16, batch_first=True), length=300), sides=("rows", "rows of the context"))
        assert caption_of(figure) == (
            "Weights from queries (rows of a map: rows) to keys (columns: rows of the context); over all keys they sum "
            "to 1. The first 8 of 16 heads. Shown: all 2 sequences of one batch; of the first, the first 128 of 300 "
            "queries (a row is the mean of 2) and all 300 keys (a column is the sum over 5)."
        )
        panel = figure.axes[1]
        assert (panel.get_ylabel(), panel.get_xlabel()) == ("query (rows)", "key (rows of the context)")
        # of 300 keys, in groups of 5
        assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "146", "300"]
        assert [label.get_text() for label in panel.get_yticklabels()] == ["1", "63", "128"]

    def test_sentences(self) -> None:
        words = [[f"word{i}" for i in range(50)]] * 2
        recording = record(IKAN(8, 2, batch_first=True), length=50, sequences=5)
        assert caption_of(draw_maps(recording, (words, words))).endswith(
            "Shown: the first 2 of 5 sequences of one batch; of each, the first 40 positions at most."
        )
        assert caption_of(draw_tokens(recording, words)).endswith(
            "Top: the mean over all 2 heads; below, each head. Shown: the first 2 of 5 sentences of one batch, of each "
            "the first 40 tokens at most."
        )
        said = caption_of(draw_alignment(recording, (words, words), sides=("target tokens", "source tokens")))
        assert said.startswith(
            "Weights from queries (rows: target tokens) to keys (columns: source tokens), the mean over "
        )
        assert "Shown: the first 2 of 5 pairs of one batch" in said

    def test_tokens_are_told_in_times_of_the_mean(self) -> None:
        recording = record(IKAN(8, 2, batch_first=True), length=3, sequences=1)
        shown = draw_tokens(recording, [["a", "b", "c"]]).axes[0].images[0].get_array()
        assert shown.shape == (3, 3)
        np.testing.assert_allclose(shown.sum(1), 3.0, rtol=1e-5)
        np.testing.assert_allclose(shown[0], shown[1:].mean(0), rtol=1e-5)

    def test_flat_tops_of_spectra(self) -> None:
        narrow = Frequencies(torch.stack([torch.randn(100), torch.randn(100) / 20]), torch.ones(2), torch.zeros(2))
        figure = draw_density([(5, narrow)], 1.0, "layer")
        said = caption_of(figure)
        assert "of all 2 heads, all coordinates together: 100 numbers a head, after step 5." in said
        assert "Flat tops are cut at twice the dashed height: head 1;" in said
        (number,) = [text.get_text() for text in figure.axes[0].texts]
        assert float(number.strip().removeprefix("×")) > 4.0
        assert figure.axes[0].get_xlabel() == "frequency, radians per unit of the query"
        wide = narrow._replace(samples=torch.randn(2, 100))
        assert caption_of(draw_density([(5, wide)], 1.0, "layer")).endswith("Nothing is cut.")

    def test_similarity(self) -> None:
        said = caption_of(draw_similarity(record(IKAN(32, 16, batch_first=True))))
        assert "for each of the first 8 of 16 heads" in said and "in units of the query" in said

    def test_fit(self) -> None:
        row = torch.arange(4)
        target = torch.tensor([1.0, 2.0, 3.0, 4.0])
        figure = draw_fit(row, target + 0.5, target, "ppm", (target - 1.0, target + torch.tensor([1, 1, 1, -1.0])), 0.9)
        said = caption_of(figure)
        assert "Predictions for all 4 validation rows" in said and "RMSE 0.5, in the unit of ppm" in said
        assert "should hold 90% of targets; they hold 3 of these 4" in said
        over = figure.axes[0]
        # the truth is over the predictions, and hides none
        assert [line.get_label() for line in over.lines] == ["prediction", "truth"]
        assert over.lines[1].get_markerfacecolor() == "none"
        for panel in figure.axes:
            assert 3 <= len(panel.get_xticks()) <= 7 and 3 <= len(panel.get_yticks()) <= 7

    def test_answers_about_nodes_and_texts(self) -> None:
        label = torch.tensor([0, 1, 1, -1])
        asked, predicted = torch.tensor([0, 1]), torch.tensor([0, 0])
        figure = draw_embeddings(torch.randn(4, 3), label, ["a", "b"], asked, predicted)
        said = caption_of(figure)
        assert "all 4 nodes of the graph" in said and "Colour and marker are the true class" in said
        assert "another class is predicted: 1 of 2; 1 are unknown." in said
        assert figure.axes[0].get_legend().get_title().get_text() == "true class"
        counts = torch.tensor([[5, 1], [0, 7]])
        said = caption_of(draw_confusion(counts, ["bad", "good"], "validation texts"))
        assert said == (
            "What validation texts are taken for: a row is a true class, a column a predicted one (all 2 classes); "
            "colour is the share of the row, numbers are counts. 12 of 13 are right."
        )
        many = torch.eye(60).long()
        figure = draw_confusion(many, [str(number) for number in range(60)])
        assert "(the first 40 of 60 classes)" in caption_of(figure) and "60 of 60 are right" in caption_of(figure)

    def test_neighbours_and_magnitude(self) -> None:
        layer = KernelGATConv(4, 4, heads=2).eval()
        with torch.no_grad(), Recorder(layer) as recorder:
            layer(torch.randn(5, 4), torch.tensor([[0, 1, 2], [1, 2, 0]]))
        said = caption_of(draw_neighbourhoods(recorder.recordings[""]))
        assert "(all 2 heads)" in said and "Shown: 2 of 5 nodes" in said
        said = caption_of(draw_magnitude(record(IKAN(8, 2, batch_first=True), length=200)))
        assert (
            "of 400 keys and 256 queries in all 2 sequences of one batch; of each, the first 128 of 200 queries."
            in said
        )

    def test_parts(self) -> None:
        history = [
            (step, {"precision": torch.tensor([1.0, 0.5]), "share": torch.tensor([0.0, 0.2])}) for step in (0, 9)
        ]
        figure = draw_parts(history, "layer")
        assert "What all 2 heads have learned, at 2 validations up to step 9: s is the precision" in caption_of(figure)
        assert [panel.get_ylabel() for panel in figure.axes] == ["s, exact part", "a, sampled part"]
        assert figure.axes[0].lines[2].get_ydata().tolist() == [0.5, 0.5]
        assert "how it went before is not in the checkpoint" in caption_of(draw_parts(history[:1], "layer"))


@pytest.mark.parametrize("count", [2, 7, 8, 10, 24])
def test_no_two_classes_look_alike(count) -> None:
    styles = category_styles(count)
    colours = np.array([to_rgb(colour) for colour, _ in styles])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert len(styles) == count and apart[np.triu_indices(count, 1)].min() > 0.05
    if count >= len(COLOURS):
        assert all(styles[k][1] != styles[k + 1][1] for k in range(count - 1))


def test_an_svg_is_a_picture_without_its_caption() -> None:
    figure = panels(1, 1, "One", "Of 52 rows.")[0]
    svg = to_svg(figure).decode()
    width, height = figure.get_size_inches() * 72
    shown = [float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)]
    assert shown == pytest.approx([width, height - 72 * 0.23], abs=0.01)
    assert "<script" not in svg and len(svg) < 30_000


def test_a_history_keeps_moments_evenly_apart() -> None:
    history = History(most=6)
    for step in range(0, 100, 10):
        history.keep("layer", step, step)
    assert history.before("layer", 1000) == [(0, 0), (20, 20), (40, 40), (60, 60), (80, 80)]
    assert history.before("another", 1000) == []
