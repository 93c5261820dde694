"""Text is no number because Python's float() takes it, and a number is not lost as text."""

import numpy as np
import pandas as pd
import pytest

from ika_lightning.data.encoders import TableEncoder
from ika_lightning.data.numbers import PLAIN, NumberFormat, find_code, is_formatted, is_number, number_cells

NUMBERS = ["0", "-1", "+2", "1.", ".5", "1e5", "1E-5", " 7 ", "00.5", "123.456e2"]
TEXTS = [
    "1_000",
    "0_1",
    "0x1F",
    "1e",
    ".",
    "-",
    "1,5",
    "١٢",
    "１２",
    "1 2",
    "five",
    "1.2.3",
    "--1",
    "1d5",
    "1e5.0",
    "True",
]


class TestNumbers:
    @pytest.mark.parametrize("cell", NUMBERS)
    def test_numbers(self, cell):
        values, is_text = number_cells(pd.Series([cell]))
        assert values.tolist() == [float(cell)] and not is_text.any() and is_number(cell)

    @pytest.mark.parametrize("cell", TEXTS)
    def test_texts(self, cell):
        values, is_text = number_cells(pd.Series([cell]))
        assert np.isnan(values).all() and is_text.all() and not is_number(cell)

    @pytest.mark.parametrize("cell", ["", "NA", "nan", "NaN", "-inf", "Infinity", "1e999", " null ", "None", "N/A"])
    def test_nothing_and_infinite(self, cell):
        values, is_text = number_cells(pd.Series([cell]))
        assert np.isnan(values).all() and not is_text.any()

    @pytest.mark.parametrize(
        "written", [PLAIN, NumberFormat(",", "."), NumberFormat(",", None), NumberFormat(".", " ")]
    )
    def test_none_of_many(self, written):
        values, is_text = number_cells(pd.Series([], dtype="str"), written)
        assert values.shape == is_text.shape == (0,)

    @pytest.mark.parametrize(
        "written, cell, value",
        [
            ((".", ","), "1,185", 1185.0), ((".", ","), "-1,234,567.5", -1234567.5), ((".", ","), "12", 12.0),
            ((".", ","), "1,18", None), ((".", ","), "1,1850", None), ((".", ","), ",185", None),
            ((".", ","), "1.5,000", None), ((",", None), "5,5", 5.5), ((",", None), "5.5", None),
            ((",", "."), "1.185,50", 1185.5), ((",", "."), "1.18", None), ((",", " "), "1 000,5e1", 10005.0),
            ((".", "'"), "1'000", 1000.0), ((".", None), "1,185", None),
        ],
    )  # fmt: skip
    def test_as_people_write_them(self, written, cell, value):
        assert NumberFormat(*written).parse(cell) == value
        values, is_text = number_cells(pd.Series([cell]), NumberFormat(*written))
        assert is_text.tolist() == [value is None] and (value is None or values.tolist() == [value])

    @pytest.mark.parametrize("written", [("x", None), (".", "."), (",", ","), (".", ""), (".", "1"), (".", ",,")])
    def test_formats_that_are_none(self, written):
        with pytest.raises(ValueError, match=r"decimal must be one of|thousands must be one sign other than decimal"):
            NumberFormat(*written).check()

    def test_formatted(self):
        formatted = ["1,185", "5,5", "12 %", "12%", "$5", "5 €", "1 000", "1\u00a0000,5", "1'000", "1.185,50", "-3,5",
                     "\u22125", "\u22121,5", "(5)", "(1,234.50)", "5-", "1.000,00-", "\u0661\u0662",
                     "\uff11\uff12"]  # fmt: skip
        assert [cell for cell in formatted if not is_formatted(cell)] == []
        others = ["5", "1.5", "2020-01-05", "12:30", "5 kg", "", "%", "1.2.3.4", "a,5", "1,2,3", "NA"]
        assert [cell for cell in others if is_formatted(cell)] == []

    @pytest.mark.parametrize("code", ["007", "0_1", "1_0", "00", "9007199254740993"])
    def test_codes(self, code):
        assert find_code(pd.Series(["10", "", code, "NA", code + "0"])) == code
        for other in ("0.5", "-7", "1e5", "A1", "-"):
            assert find_code(pd.Series([code, other])) is None
        assert find_code(pd.Series([code, "-"]), missing=["-"]) == code

    @pytest.mark.parametrize("cell", ["0", "10", "0.5", "-7", "1e5", "A1", ""])
    def test_no_codes(self, cell):
        assert find_code(pd.Series([cell])) is None


def fit(cells: list[str], **options) -> TableEncoder:
    table = pd.DataFrame({"x": cells, "y": [str(row) for row in range(len(cells))]}, dtype="str")
    return TableEncoder("y", **options).fit(table, source="t.csv")


class TestColumns:
    @pytest.mark.parametrize(
        "cells", [["0_1", "1_0", "10", "01"], ["007", "7", "70"], ["9007199254740993", "9007199254740992"]]
    )
    def test_codes_are_categories_each_and_one_line_says_so(self, cells, capsys):
        assert fit(cells).feature_names == [f"x={cell}" for cell in sorted(cells)]
        assert capsys.readouterr().err.startswith("t.csv: column 'x' is read as codes, a category each, and not as")

    def test_zeros_in_front_of_fractions_are_numbers(self, capsys):
        assert fit(["01", "02.5", "3"]).feature_names == ["x"]
        assert fit(["-01", "02", "3"]).feature_names == ["x"]
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        "cells",
        [
            ["1,185", "950", "2,001"],
            ["5,5", "3,2"],
            ["12 %", "7 %", "3 %"],
            ["$5", "$6"],
            ["5", "6,5", "n.a.", "7,5"],
            ["\u22125", "6", "\u22127"],
            ["(5)", "6", "(7)"],
            ["5-", "6-"],
            ["\u0661", "\u0662"],
        ],
    )
    def test_numbers_in_an_unknown_format_are_refused(self, cells):
        with pytest.raises(ValueError, match=r"t.csv, row [12]: '.*' in column 'x' is a number that .*--data.decimal"):
            fit(cells)

    @pytest.mark.parametrize(
        "cells",
        [["5 kg", "6 kg"], ["CHF 5", "CHF 6"], ["12:30", "13:00"], ["1/2", "3/4"], ["<5", "<7", "9"], ["2k", "3k"]],
    )
    def test_text_that_may_be_numbers_is_told(self, cells, capsys):
        assert fit(cells).feature_names == [f"x={cell}" for cell in sorted(cells)]
        assert capsys.readouterr().err == (
            f"t.csv: column 'x' is read as text, a category each, and not as numbers, as it has {cells[0]!r}\n"
        )

    def test_of_other_text_nothing_is_said(self, capsys):
        fit(["A5", "B6", "room 7", "-", "5 kg"])
        assert capsys.readouterr().err == ""

    def test_the_format_settles_it(self):
        encoder = fit(["1.185,5", "950", "2.001"], written=NumberFormat(",", "."))
        assert encoder.feature_names == ["x"]
        loaded = TableEncoder("")
        loaded.load_state_dict(encoder.state_dict())
        new = pd.DataFrame({"x": ["1.185,5"]}, dtype="str")
        features = [coder.encode(new, labelled=False).features for coder in (encoder, loaded)]
        assert features[0].equal(features[1])
        with pytest.raises(ValueError, match=r"row 1: column 'x' is a number in training, but '1.5' is not a number"):
            loaded.encode(pd.DataFrame({"x": ["1.5"]}, dtype="str"), labelled=False)

    def test_a_target_in_an_unknown_format(self):
        table = pd.DataFrame({"x": ["1", "2"], "y": ["1,185", "950"]}, dtype="str")
        with pytest.raises(ValueError, match=r"'1,185' is not a number; say how .* --data.decimal and --data.thousand"):
            TableEncoder("y").fit(table)
        assert TableEncoder("y", written=NumberFormat(".", ",")).fit(table).target_mean == (1185 + 950) / 2

    def test_what_a_column_is_the_training_rows_say(self):
        table = pd.DataFrame({"x": ["1", "2", "many"], "y": ["1", "2", "3"]}, dtype="str")
        with pytest.raises(ValueError, match=r"row 3: column 'x' is a number in training, but 'many' is not a number"):
            TableEncoder("y").fit(table, np.array([0, 1]))
        table = pd.DataFrame({"x": ["a", "b", "3"], "y": ["1", "2", "3"]}, dtype="str")
        assert TableEncoder("y").fit(table, np.array([0, 1])).feature_names == ["x=a", "x=b"]

    def test_missing_or_a_value(self, capsys):
        garages = ["NA", "brick", "wood", "NA"]
        encoder = fit(garages, missing="mean")
        assert encoder.feature_names == ["x=brick", "x=wood"]
        assert "t.csv: 'NA' in column 'x' is read as missing; if it is a category, say so" in capsys.readouterr().err
        assert fit(garages, missing_values=[]).feature_names == ["x=NA", "x=brick", "x=wood"]
        assert capsys.readouterr().err == ""
        other = fit(["-9", "1", "2", "-9"], missing="mean", missing_values=["-9"])
        assert (other.state_dict()["columns"][0]["mean"], other.feature_names) == (1.5, ["x"])
        with pytest.raises(ValueError, match="2 missing or infinite cells"):
            fit(["-9", "1", "2", "-9"], missing_values=["-9"])

    def test_a_category_for_each_row_is_said(self, capsys):
        fit([f"2020-01-{day:02}" for day in range(1, 31)])
        assert "column 'x' has 30 categories in 30 training rows, a feature for each" in capsys.readouterr().err
