import gzip
from pathlib import Path

import numpy as np
import pytest

from ika_lightning.data.labelled import draw, read_labelled, spread


@pytest.fixture
def save(tmp_path):
    def save(content: str | bytes, name: str = "rows.tsv") -> str:
        Path(tmp_path, name).write_bytes(content.encode() if isinstance(content, str) else content)
        return str(tmp_path / name)

    return save


def read(path: str, *columns):
    rows = read_labelled(path, *columns)
    return list(zip(rows.labels, rows.texts, strict=True))


class TestTsv:
    def test_a_row_is_split_at_its_first_tab_only(self, save):
        assert read(save("a\tone\ttwo\nb\t three \n")) == [("a", "one\ttwo"), ("b", " three ")]

    def test_quotes_and_exotic_line_ends_are_text(self, save):
        assert read(save('a\t"one\nb\ttwo\x85\u2028three\x1c\n')) == [("a", '"one'), ("b", "two\x85\u2028three\x1c")]

    def test_crlf_byte_order_mark_blank_lines_and_gzip(self, save):
        rows = save(gzip.compress("\ufeffa\tone\r\n\r\nb\ttwo\r\n".encode()), "ROWS.TSV.gz")
        assert read(rows) == [("a", "one"), ("b", "two")]
        assert read_labelled(rows).lines == [1, 3]

    def test_header(self, save):
        assert read(save("id\ttext\tlabel\n7\tone\ta\n")) == [("a", "one")]
        assert read(save("kind\tid\tsays\na\t7\tone\ttwo\n"), "kind", "says") == [("a", "one\ttwo")]

    def test_positions(self, save):
        assert read(save("7\tone\ta\n"), 3, 2) == [("a", "one")]
        assert read(save("7\tone\ta\n"), "3", "2") == [("a", "one")]  # as a command line may give them
        assert read(save("1\t2\na\tone\n"), "1", "2") == [("a", "one")]

    def test_empty_text_is_kept(self, save):
        assert read(save("a\t\nb\tx\n")) == [("a", ""), ("b", "x")]

    def test_right_to_left_and_emoji(self, save):
        assert read(save("he\tשלום עולם\nno\t🤷🏽‍♀️ \u200f\n")) == [("he", "שלום עולם"), ("no", "🤷🏽‍♀️ \u200f")]


class TestCsv:
    def test_quoted_cells(self, save):
        rows = save('label,text\r\na,"one, ""two""\nthree"\r\n\r\nb,four\r\n', "rows.csv")
        assert read(rows) == [("a", 'one, "two"\nthree'), ("b", "four")]
        assert read_labelled(rows).lines == [2, 5]

    def test_without_header(self, save):
        assert read(save("a,one\nb,two\n", "rows.csv")) == [("a", "one"), ("b", "two")]


class TestJsonl:
    def test_objects(self, save):
        rows = save('{"text": "one\\ttwo", "label": 3}\n\n{"label": true, "text": ""}\n', "rows.jsonl")
        assert read(rows) == [("3", "one\ttwo"), ("True", "")]

    def test_named_keys(self, save):
        assert read(save('{"y": "a", "x": "one"}', "rows.jsonl"), "y", "x") == [("a", "one")]


WRONG = {
    "empty": ("", "rows.tsv", (), r"rows\.tsv is empty"),
    "empty csv": ("", "rows.csv", (), r"rows\.csv is empty"),
    "header only": ("label\ttext\n", "rows.tsv", (), r"rows\.tsv is empty"),
    "no tab": ("a\tone\nb two\n", "rows.tsv", (), r"line 2: 1 columns where 2 are needed; .* by a tab"),
    "no comma": ("a\nb\n", "rows.csv", (), r"line 1: 1 columns where 2 are needed; .* by a comma"),
    "unquoted comma": ("a,one\nb,two, three\n", "rows.csv", (), r"line 2: 3 cells where the first line has 2; put"),
    "open quote": ('a,one\nb,"two\n', "rows.csv", (), r"line 2: unexpected end of data; check the quotes"),
    "no label": ("a\tone\n\ttwo\n", "rows.tsv", (), r"line 2: the label is empty; fill it in"),
    "not utf-8": (b"a\tone\nb\ttw\xf6\n", "rows.tsv", (), r"line 2: byte 0xf6 is not UTF-8; save the file"),
    "not gzip": (b"a\tone\n", "rows.tsv.gz", (), r"no complete gzip file"),
    "not json": ('{"label": 1, "text": "a"}\n{label: 1}\n', "rows.jsonl", (), r"line 2: not JSON .*write an object"),
    "other keys": ('{"label": 1}', "rows.jsonl", (), r"line 1: no object with 'label' and 'text'; name the keys"),
    "a list": ('["label", "text"]', "rows.jsonl", (), r"line 1: no object with"),
    "a number for a text": ('{"label": 1, "text": 5}', "rows.jsonl", (), r"line 1: 'text' should be a string, got 5"),
    "no such column": ("lable\ttext\na\tb\n", "rows.tsv", ("label", None), r"'label' \(did you mean 'lable'\?\)"),
    "mixed": ("a\tone\n", "rows.tsv", ("label", 2), r"both be names or both be positions, got 'label' and 2"),
    "same position": ("a\tone\n", "rows.tsv", (2, None), r"two different positions, from 1, got 2 and None"),
    "position 0": ("a\tone\n", "rows.tsv", (0, 1), r"positions"),
    "unknown kind": ("a\tone\n", "rows.xls", (), r"its name should end in \.tsv, \.csv or \.jsonl"),
}


@pytest.mark.parametrize("content, name, columns, message", WRONG.values(), ids=WRONG)
def test_wrong(save, content, name, columns, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_labelled(save(content, name), *columns)


def test_no_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.tsv"):
        read_labelled(str(tmp_path / "none.tsv"))
    with pytest.raises(ValueError, match="is a folder"):
        read_labelled(str(tmp_path))


class TestDealing:
    labels = np.random.default_rng(0).choice(5, 337, p=[0.5, 0.3, 0.1, 0.09, 0.01])

    def test_each_class_gets_its_share(self):
        rows = draw(self.labels, np.arange(337), 67, np.random.default_rng(1))
        assert len(set(rows.tolist())) == 67
        for label in range(5):
            assert abs((self.labels[rows] == label).sum() - (self.labels == label).sum() * 67 / 337) < 1

    def test_folds_part_the_rows_and_each_class(self):
        ordered = spread(self.labels, np.arange(337), np.random.default_rng(1))
        folds = [ordered[fold::7] for fold in range(7)]
        assert sorted(np.concatenate(folds).tolist()) == list(range(337))
        for label in range(5):
            counts = [(self.labels[fold] == label).sum() for fold in folds]
            assert max(counts) - min(counts) <= 1

    def test_the_only_row_of_a_class_is_never_drawn(self):
        labels = np.array([0, 0, 0, 1])
        for seed in range(20):
            assert 3 not in draw(labels, np.arange(4), 3, np.random.default_rng(seed))
        assert draw(labels, np.array([0, 3]), 1, np.random.default_rng(0)).tolist() == []

    def test_the_draw_is_random_and_repeats(self):
        first, again, other = (
            draw(self.labels, np.arange(337), 9, np.random.default_rng(s)).tolist() for s in (0, 0, 1)
        )
        assert first == again != other
