"""Tables: reading what people have, and turning it into numbers that one can check by hand."""

import gzip
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from ika_lightning.data.encoders import TableEncoder
from ika_lightning.data.table import as_text, read_table


@pytest.fixture
def save(tmp_path):
    def save(content: str | bytes, name: str = "table.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return save


def frame(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({name: [str(cell) for cell in cells] for name, cells in columns.items()}, dtype="str")


class TestReading:
    def test_keeps_cells_as_they_are(self, save):
        table = read_table(save('a,b\n1.50,""\n"x, y","two\nlines"\n'))
        assert table.to_dict("list") == {"a": ["1.50", "x, y"], "b": ["", "two\nlines"]}

    def test_text_that_pandas_would_take_for_missing_stays(self, save):
        assert read_table(save("a,b\nNA,nan\n")).to_dict("list") == {"a": ["NA"], "b": ["nan"]}

    @pytest.mark.parametrize("content", [b"\xef\xbb\xbfa,b\n1,2\n", b"a,b\r\n1,2\r\n", b"a, b\n1,2\n\n", b"a,b\n\n1,2"])
    def test_byte_order_mark_line_ends_and_blank_lines(self, save, content):
        assert read_table(save(content)).to_dict("list") == {"a": ["1"], "b": ["2"]}

    def test_tabs_and_gzip(self, save):
        expected = {"a": ["1,5"], "b": ["2"]}
        assert read_table(save("a\tb\n1,5\t2\n", "t.tsv")).to_dict("list") == expected
        assert read_table(save(gzip.compress(b"a\tb\n1,5\t2\n"), "T.TSV.gz")).to_dict("list") == expected

    def test_parquet(self, save):
        buffer = io.BytesIO()
        table = pd.DataFrame(
            {"n": [1, 2], "x": [0.1, np.nan], "flag": [True, False], "s": ["a", None], "c": pd.Categorical(["u", "v"])},
            index=[7, 9],
        )
        table.to_parquet(buffer)
        assert read_table(save(buffer.getvalue(), "t.parquet")).to_dict("list") == {
            "n": ["1", "2"], "x": ["0.1", ""], "flag": ["1", "0"], "s": ["a", ""], "c": ["u", "v"]
        }  # fmt: skip

    def test_columns_of_parquet_have_names_even_if_these_are_numbers(self, save):
        buffer = io.BytesIO()
        pd.DataFrame({"2019": [5, 7], "2020": [1, 2]}).to_parquet(buffer, index=False)
        assert read_table(save(buffer.getvalue(), "t.parquet")).to_dict("list") == {
            "2019": ["5", "7"],
            "2020": ["1", "2"],
        }

    def test_parquet_of_dates(self, save):
        buffer = io.BytesIO()
        pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}).to_parquet(buffer)
        with pytest.raises(ValueError, match=r"'when' is of type timestamp.*convert it"):
            read_table(save(buffer.getvalue(), "t.parquet"))

    @pytest.mark.parametrize(
        "content, name, message",
        [
            ("", "t.csv", "is empty"),
            ("\n\n", "t.csv", "is empty"),
            ("a,b\n", "t.csv", "has a header but no rows"),
            ("a,b,a\n1,2,3\n", "t.csv", "'a' more than once"),
            (",b\n0,2\n", "t.csv", "column 1 has no name"),
            ("a,b,c\n1,2,3\n4,5\n", "t.csv", "row 2: 2 cells where the header has 3"),
            ("a,b\n1,2\n3,4\n5,6,7\n", "t.csv", "row 3: 3 cells where the header has 2"),
            ('a,b\n1,2\n"3,4\n', "t.csv", "line 3: unexpected end of data"),
            (b"a,b\n1,2\ncaf\xe9,3\n", "t.csv", "line 3: byte 0xe9 is not UTF-8"),
            (b"not gzip", "t.csv.gz", "no complete gzip file"),
            (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "t.csv.gz", "no complete gzip file"),
            (b"PAR1 and nonsense", "t.parquet", "no Parquet file that can be read"),
            ("a,b\n1,2\n", "t.xlsx", "should end in .csv, .tsv"),
        ],
    )
    def test_says_what_is_wrong_in_one_line(self, save, content, name, message):
        path = save(content, name)
        with pytest.raises(ValueError, match=message) as caught:
            read_table(path)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*missing.csv"):
            read_table(str(tmp_path / "missing.csv"))
        with pytest.raises(ValueError, match="is a folder"):
            read_table(str(tmp_path))


class TestEncoding:
    def test_by_hand(self):
        table = frame(x=[1, 3, 5], city=["Ulm", "Bonn", " Ulm "], z=["1e3", "-1e3", "4e3"], y=[10, 20, 60])
        encoder = TableEncoder("y", drop=["z"]).fit(table)
        rows = encoder.encode(table)
        assert encoder.feature_names == ["x", "city=Bonn", "city=Ulm"]
        step = 1.5**0.5  # (5 - 3) / sqrt((4 + 0 + 4) / 3)
        assert_close(rows.features, torch.tensor([[-step, 0, 1], [0, 1, 0], [step, 0, 1]]))
        assert (encoder.target_mean, encoder.target_std) == (30, pytest.approx((1400 / 3) ** 0.5))
        assert_close(rows.target, torch.tensor([-20.0, -10.0, 30.0]) / (1400 / 3) ** 0.5)
        assert rows.row.tolist() == [0, 1, 2]
        assert [tensor.dtype for tensor in rows] == [torch.float32, torch.float32, torch.int64]

    def test_digits_far_behind_the_point_survive(self):
        """In float32, these numbers would be one and the same."""
        rows = TableEncoder("y").fit(t := frame(x=["1000000000.25", "1000000000.75"], y=[1, 2])).encode(t)
        assert rows.features.tolist() == [[-1.0], [1.0]]

    @pytest.mark.parametrize("unit", [1e-300, 1e-160, 1e200, 1e300])
    def test_units_whose_squares_are_beyond_all_numbers(self, unit):
        encoder = TableEncoder("y").fit(t := frame(x=[1 * unit, 3 * unit], y=[-5 * unit, 7 * unit]))
        rows = encoder.encode(t)
        assert rows.features.tolist() == [[-1.0], [1.0]]
        assert_close(rows.target, torch.tensor([-1.0, 1.0]))
        assert (encoder.target_mean, encoder.target_std) == (pytest.approx(unit), pytest.approx(6 * unit))

    def test_learns_from_training_rows_alone(self):
        train = np.array([0, 2, 3])
        first = frame(x=[1, 7, 2, 4], s=["a", "b", "b", "a"], y=[3, 1, 4, 6])
        second = frame(x=[1, -99, 2, 4], s=["a", "a", "b", "a"], y=[3, 500, 4, 6])
        one, two = TableEncoder("y").fit(first, train), TableEncoder("y").fit(second, train)
        assert one.state_dict() == two.state_dict()
        assert_close(one.encode(first).features[train], two.encode(second).features[train], rtol=0, atol=0)

    def test_unseen_category(self):
        train = frame(s=["b", "a", "a"], y=[1, 2, 3])
        new = frame(s=["a", "c"])
        message = "new.csv, row 2, column 's': 'c' was never seen in training, where there are 'a', 'b'"
        with pytest.raises(ValueError, match=message):
            TableEncoder("y").fit(train).encode(new, "new.csv", labelled=False)
        rows = TableEncoder("y", unseen="ignore").fit(train).encode(new, labelled=False)
        assert rows.features.tolist() == [[1, 0], [0, 0]]
        assert rows.target.isnan().all()

    def test_text_where_training_had_numbers(self):
        encoder = TableEncoder("y").fit(frame(x=[1, 2], y=[1, 2]))
        with pytest.raises(ValueError, match=r"new.csv, row 2: column 'x' is a number in training, but 'many' is not"):
            encoder.encode(frame(x=[1, "many"]), "new.csv", labelled=False)

    def test_columns_come_in_any_order_and_company(self):
        table = frame(x=[1, 2, 4], w=[3, 1, 1], y=[1, 2, 3])
        encoder = TableEncoder("y").fit(table)
        shuffled = table.assign(extra="?")[["extra", "w", "y", "x"]]
        assert_close(encoder.encode(shuffled).features, encoder.encode(table).features, rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"new.csv has no column 'w'; its columns are 'x'"):
            encoder.encode(table[["x"]], "new.csv", labelled=False)

    def test_state_round_trip(self, tmp_path):
        table = frame(x=[1, 2, ""], s=["a", "b", "b"], y=[1, 2, 3])
        encoder = TableEncoder("y", missing="mean", unseen="ignore").fit(table)
        torch.save(encoder.state_dict(), tmp_path / "state.pt")
        loaded = TableEncoder("")
        loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert loaded.state_dict() == encoder.state_dict()
        for one, two in zip(encoder.encode(table), loaded.encode(table), strict=True):
            assert_close(one, two, rtol=0, atol=0)


class TestMissingCells:
    table = frame(x=[1, "inf", 5, "", 6], s=["a", "b", "NA", "b", "a"], y=[2, 4, 6, 8, "null"])

    def test_error_says_how_many_and_where(self):
        where = "row 2 column 'x', row 3 column 's', row 4 column 'x', row 5 column 'y'"
        message = re.escape(f"t.csv: 4 missing or infinite cells in 4 rows ({where}); pass --data.missing drop")
        with pytest.raises(ValueError, match=f"{message}.*a row without the target 'y' is left out by both"):
            TableEncoder("y").fit(self.table, source="t.csv")

    def test_error_in_new_rows(self):
        encoder = TableEncoder("y").fit(frame(x=[1, 2], y=[1, 2]))
        with pytest.raises(ValueError, match=r"2 missing or infinite cells in 2 rows \(row 1 column 'x', row 3"):
            encoder.encode(frame(x=["-inf", 1, "nan"]), labelled=False)

    def test_drop(self):
        table = frame(x=[1, "inf", 5, 9, ""], y=[2, 4, 6, "NaN", 10])
        rows = TableEncoder("y", missing="drop").fit(table).encode(table)
        assert rows.row.tolist() == [0, 2]
        assert rows.features.tolist() == [[-1], [1]]

    def test_mean(self):
        encoder = TableEncoder("y", missing="mean").fit(self.table)
        rows = encoder.encode(self.table)
        assert rows.row.tolist() == [0, 1, 2, 3]  # a target is never invented
        # of the rows that stay, x is known to be 1 and 5
        assert rows.features.tolist() == [[-1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
        assert encoder.target_mean == 5

    def test_nothing_left(self):
        with pytest.raises(ValueError, match="no training row is left"):
            TableEncoder("y", missing="drop").fit(frame(x=[1, 2, "", ""], w=["", "", 1, 2], y=[1, 2, 3, 4]))


class TestUnusableColumns:
    def test_constant_feature_is_left_out_with_a_word(self):
        table = frame(x=[1, 2, 3], c=["0.1"] * 3, s=["a", "a", "b"], e=["", "", ""], y=[1, 2, 4])
        with pytest.warns(UserWarning, match=r"t.csv: left out 'c', 's', 'e', constant \(or empty\) in the 2 training"):
            encoder = TableEncoder("y").fit(table, np.array([0, 1]), "t.csv")
        assert encoder.feature_names == ["x"]

    def test_a_stray_word_among_numbers_is_pointed_out(self):
        with pytest.warns(UserWarning, match="row 2: '1O' makes 'x', mostly numbers, a column of text"):
            TableEncoder("y").fit(frame(x=[1, "1O", 3], y=[1, 2, 3]))

    def test_constant_target(self):
        with pytest.raises(ValueError, match=r"the target 'y' is 0.1 in all of the 3 training rows"):
            TableEncoder("y").fit(frame(x=[1, 2, 3], y=["0.1"] * 3))

    def test_text_target(self):
        with pytest.raises(ValueError, match="row 2: column 'y' is the target, but 'high' is not a number"):
            TableEncoder("y").fit(frame(x=[1, 2], y=[1, "high"]))

    def test_no_such_target(self):
        with pytest.raises(
            ValueError, match=r"no column 'prise' \(did you mean 'price'\?\); its columns are 'x', 'price'"
        ):
            TableEncoder("prise").fit(frame(x=[1, 2], price=[1, 2]))

    def test_no_feature(self):
        with pytest.raises(ValueError, match="no feature is left: 'x' besides the target 'y'"):
            TableEncoder("y").fit(frame(x=[1, 1], y=[1, 2]))
        with pytest.raises(ValueError, match="no feature is left: no column besides"):
            TableEncoder("y").fit(frame(y=[1, 2]))


class TestHeader:
    @pytest.mark.parametrize("content", ["1,2,3\n4,5,6\n", "2.5,-1\n3,4\n", "1\n2\n"])
    def test_a_first_line_of_numbers_is_a_row(self, save, content):
        with pytest.raises(ValueError, match=r"line 1, '.*', has numbers alone, as a row has; put names of columns"):
            read_table(save(content))

    def test_names_that_are_numbers_among_others(self, save):
        assert read_table(save("city,2019,2020\nUlm,1,2\n")).columns.tolist() == ["city", "2019", "2020"]
        assert read_table(save("0,1,2\n5,6,7\n")).columns.tolist() == ["0", "1", "2"]  # as pandas numbers columns

    def test_a_name_that_is_a_value_as_well_is_said(self, save, capsys):
        assert len(read_table(save("Ulm,3\nBonn,4\nUlm,5\n"))) == 2
        assert "line 1 was read as a header, though 'Ulm' is a value of its column as well" in capsys.readouterr().err

    def test_an_index_of_pandas(self, save):
        with pytest.raises(ValueError, match=r"column 1 has no name; .* left out by to_csv\(index=False\)"):
            read_table(save(",a\n0,5\n"))

    def test_other_separators(self, save, capsys):
        path = save("a;b\n1,5;2\n")
        with pytest.raises(ValueError, match=r"has one cell, 'a;b', if ',' separates cells; .* --data.separator ';'"):
            read_table(path)
        assert read_table(path, ";").to_dict("list") == {"a": ["1,5"], "b": ["2"]}
        assert read_table(path, "auto").equals(read_table(path, ";"))
        assert read_table(save("a|b\n1|2\n", "t.txt"), "|").to_dict("list") == {"a": ["1"], "b": ["2"]}

    def test_with_and_without_quotes_it_is_the_same_table(self, save):
        plain = "a,b,c\n" + "".join(f"{row},x {row} ,{'' if row % 3 else 'NA'}\n" for row in range(1013))
        quotes = plain.replace("x 7 ", '"x 7 "')
        assert read_table(save(plain)).equals(read_table(save(quotes, "other.csv")))


def test_a_column_of_several_types_is_named():
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "x": [1, "y", None]})
    with pytest.raises(ValueError, match=r"^X: column 'x' has cells of several types, int and str; make them all"):
        as_text(frame, "X")
