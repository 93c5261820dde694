"""Delimited text: taken apart as it stands, and put together so that it can be taken apart again."""

import csv
import gzip
import io

import pytest

from ika_lightning.data.cells import check_format, format_of, pack, read_cells

TRICKY = ["tab\there", 'say "so"', '"whole"', "line\nend", "lone\rreturn", "both\r\n", "", " blank ", "a,b;c", "🤷🏽‍♀️",
          "\u2028\x85\x1c", "NA", "0_1", "'", "#"]  # fmt: skip


def rows(text: str, separator: str = ",", **options) -> list[list[str]]:
    return [cells for _, cells in read_cells(text, "rows", separator, **options).rows]


class TestReading:
    def test_lines_are_counted_where_cells_have_line_ends(self):
        assert list(read_cells('a,b\n"1\n2",3\n\n4,5\n', "rows", ",").rows) == [
            (1, ["a", "b"]), (2, ["1\n2", "3"]), (5, ["4", "5"]),
        ]  # fmt: skip

    def test_a_cell_of_any_length(self):
        before = csv.field_size_limit()
        assert rows(f"a,{'x' * 200_003}\n") == [["a", "x" * 200_003]]
        assert csv.field_size_limit() == before

    def test_quotes_by_the_first_line(self):
        assert rows('"a"\t"b"\n"1\t2"\t3\n', "\t", quotes=None) == [["a", "b"], ["1\t2", "3"]]
        assert rows('"a\tb\n"1\t2\n', "\t", quotes=None) == [['"a', "b"], ['"1', "2"]]

    def test_an_open_quote(self):
        with pytest.raises(ValueError, match="rows, line 2: unexpected end of data; check the quotes there"):
            rows('a,b\n"1,2\n')

    @pytest.mark.parametrize("separator, name", [(";", "semicolon"), ("\t", "tab"), ("|", "bar"), (",", "comma")])
    def test_auto_finds_it_and_says_so(self, separator, name, capsys):
        text = f"a{separator}b\n1.5{separator}2\n" * 200
        assert read_cells(text, "rows", "auto").separator == separator
        assert capsys.readouterr().err == f"rows: cells are separated by {separator!r} ({name})\n"

    def test_auto_with_decimal_commas(self, capsys):
        assert rows("a;b\n1,5;2\n3;4,5\n", "auto") == [["a", "b"], ["1,5", "2"], ["3", "4,5"]]

    @pytest.mark.parametrize(
        "text, message",
        [
            ("a,b;c\n1,2;3\n", "cells may be separated by ',', ';'; say by which with --data.separator"),
            ("a\n1\n", "none of ',', ';'.* cuts the first rows into as many cells each"),
            ("", "none of"),
        ],
    )
    def test_auto_does_not_guess(self, text, message):
        with pytest.raises(ValueError, match=message):
            rows(text, "auto")

    @pytest.mark.parametrize("separator", ["", ";;", '"', "\n"])
    def test_what_is_no_separator(self, separator):
        with pytest.raises(ValueError, match="separator must be one character, 'tab' or 'auto', got"):
            rows("a", separator)

    def test_tab_by_its_name(self):
        assert rows("a\tb", "tab") == rows("a\tb", "\\t") == [["a", "b"]]


class TestWriting:
    @pytest.mark.parametrize("name, separator", [("x.csv", ","), ("x.tsv", "\t"), ("X.TSV", "\t"), ("-", ",")])
    @pytest.mark.parametrize("cell", TRICKY)
    def test_every_reader_gets_the_cells_back(self, name, separator, cell):
        content = pack({"text": [cell, "plain"], "n\tame": [1, cell]}, name).decode()
        expected = [["text", "n\tame"], [cell, "1"], ["plain", cell]]
        assert rows(content, separator) == expected
        assert rows(content, separator, quotes=separator == "," or None) == expected
        assert list(csv.reader(io.StringIO(content, newline=""), delimiter=separator)) == expected

    def test_a_column_of_empty_cells(self):
        assert rows(pack({"a": ["", "1"]}, "x.csv").decode()) == [["a"], [""], ["1"]]

    def test_no_quotes_without_need(self):
        assert pack({"a": ["one, two"]}, "x.tsv") == b"a\none, two\n"

    def test_compressed_by_its_name(self):
        assert gzip.decompress(pack({"a": ["1"]}, "x.csv.gz")) == b"a\n1\n"

    def test_objects(self):
        assert pack({"a": ['"\t\n'], "b": [1]}, "x.jsonl") == b'{"a": "\\"\\t\\n", "b": 1}\n'

    def test_what_is_not_written(self):
        for name in ("x.parquet", "x.json.gz", "X.XLSX"):
            with pytest.raises(ValueError, match=r"predictions are written as \.csv, \.tsv or \.jsonl"):
                check_format(name)
        for name in ("x.csv.gz", "x.txt", "-", "x"):
            check_format(name)


def test_format() -> None:
    assert [format_of(name) for name in ("a.CSV", "b.jsonl.gz", "c", ".hidden/d.tsv")] == [".csv", ".jsonl", "", ".tsv"]
