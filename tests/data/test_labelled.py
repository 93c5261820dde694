import gzip
import json
import re
from pathlib import Path

import pytest

from ika_lightning.data.labelled import read_labelled, read_texts


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
        assert read(save("a\tone\ttwo\nb\t three \n"), 1, 2) == [("a", "one\ttwo"), ("b", " three ")]

    def test_quotes_and_exotic_line_ends_are_text(self, save):
        assert read(save('a\t"one\nb\ttwo\x85\u2028three\x1c\n'), 1, 2) == [
            ("a", '"one'),
            ("b", "two\x85\u2028three\x1c"),
        ]

    def test_crlf_byte_order_mark_blank_lines_and_gzip(self, save):
        rows = save(gzip.compress("\ufeffa\tone\r\n\r\nb\ttwo\r\n".encode()), "ROWS.TSV.gz")
        assert read(rows, 1, 2) == [("a", "one"), ("b", "two")]
        assert read_labelled(rows, 1, 2).lines == [1, 3]

    def test_header(self, save):
        assert read(save("id\ttext\tlabel\n7\tone\ta\n")) == [("a", "one")]
        assert read(save("kind\tid\tsays\na\t7\tone\ttwo\n"), "kind", "says") == [("a", "one\ttwo")]

    def test_positions(self, save):
        assert read(save("7\tone\ta\n"), 3, 2) == [("a", "one")]
        assert read(save("7\tone\ta\n"), "3", "2") == [("a", "one")]  # as a command line may give them
        assert read(save("1\t2\na\tone\n"), "1", "2") == [("a", "one")]

    def test_empty_text_is_kept(self, save):
        assert read(save("a\t\nb\tx\n"), 1, 2) == [("a", ""), ("b", "x")]

    def test_right_to_left_and_emoji(self, save):
        rows = save("he\tשלום עולם\nno\t🤷🏽‍♀️ \u200f\n")
        assert read(rows, 1, 2) == [("he", "שלום עולם"), ("no", "🤷🏽‍♀️ \u200f")]


class TestCsv:
    def test_quoted_cells(self, save):
        rows = save('label,text\r\na,"one, ""two""\nthree"\r\n\r\nb,four\r\n', "rows.csv")
        assert read(rows) == [("a", 'one, "two"\nthree'), ("b", "four")]
        assert read_labelled(rows).lines == [2, 5]

    def test_without_header(self, save):
        assert read(save("a,one\nb,two\na,three\n", "rows.csv")) == [("a", "one"), ("b", "two"), ("a", "three")]


class TestJsonl:
    def test_objects(self, save):
        rows = save('{"text": "one\\ttwo", "label": 3}\n\n{"label": true, "text": ""}\n', "rows.jsonl")
        assert read(rows) == [("3", "one\ttwo"), ("true", "")]

    def test_named_keys(self, save):
        assert read(save('{"y": "a", "x": "one"}', "rows.jsonl"), "y", "x") == [("a", "one")]


WRONG = {
    "empty": ("", "rows.tsv", (), r"rows\.tsv is empty"),
    "empty csv": ("", "rows.csv", (), r"rows\.csv is empty"),
    "header only": ("label\ttext\n", "rows.tsv", (), r"rows\.tsv is empty"),
    "no tab": ("a\tone\nb two\n", "rows.tsv", (1, 2), r"line 2: 1 columns where 2 are needed; .* by a tab"),
    "no comma": ("a\nb\n", "rows.csv", (1, 2), r"line 1: 1 columns where 2 are needed; .* by a comma"),
    "unquoted comma": ("a,one\nb,two, three\n", "rows.csv", (1, 2), r"line 2: 3 cells where the first line has 2; put"),
    "open quote": ('a,one\nb,"two\n', "rows.csv", (), r"line 2: unexpected end of data; check the quotes"),
    "no label": ("a\tone\n\ttwo\n", "rows.tsv", (1, 2), r"line 2: the label is empty; fill it in"),
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
    "old line ends": ("a\tone\rb\ttwo\r", "rows.tsv", (), r"rows\.tsv: lines end in \\r alone.*save the file with"),
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


# the first line, where it should be a header, and the columns of labels and texts
HEADERS = ["label,text", "Label,Text", "CLASS,Sentence", "sentiment,review", "category,message", "target,document",
           "y,utterance", " label , content "]  # fmt: skip


class TestFirstLine:
    rows = "ham,hello there\nspam,win a prize\nham,see you\nspam,buy now\n"

    @pytest.mark.parametrize("header", HEADERS)
    def test_usual_names(self, save, header):
        expected = [("ham", "hello there"), ("spam", "win a prize"), ("ham", "see you"), ("spam", "buy now")]
        assert read(save(f"{header}\n{self.rows}", "rows.csv")) == expected
        tabs = f"{header}\n{self.rows}".replace(",", "\t")
        assert read(save(tabs)) == expected
        pairs = [line.split(",") for line in f"{header}\n{self.rows}".split("\n")[:-1]]
        swapped = "".join(f"{text},{label}\n" for label, text in pairs)
        assert read(save(swapped, "rows.csv")) == expected

    def test_an_index_in_front(self, save):
        numbered = ",sentiment,review\n" + "".join(f"{n},{line}\n" for n, line in enumerate(self.rows.split("\n")[:-1]))
        assert read(save(numbered, "rows.csv"))[1] == ("spam", "win a prize")

    @pytest.mark.parametrize(
        "content",
        [
            "v1,v2\n" + rows,
            "review,kind\n" + rows,
            ",v1,v2\n0,ham,hello\n1,ham,there\n",
            "class,category,text\nham,a,hello\nham,b,there\n",
            "1,ham,hello\n2,ham,there\n",
            "".join(f"text {n},ham\n" for n in range(30)),
            "v1,v2\nham,hello\nspam,win\n",
            "ham,hello\nspam,win\n",
            "Kommentar,Klasse\n",
        ],
        ids=[
            "v1",
            "one usual name",
            "index",
            "two labels",
            "three columns",
            "all labels different",
            "a few rows",
            "perhaps a few rows",
            "one line",
        ],
    )
    @pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
    def test_what_is_unclear_is_refused(self, save, content, name):
        content = content if name == "rows.csv" else content.replace(",", "\t")
        first = content.split("\n")[0].replace("\t", "\\\\t")
        with pytest.raises(ValueError, match=rf"is the first line, '{first}', a header or a row\? If .*--data\.label"):
            read(save(content, name))

    def test_names_and_positions_settle_it(self, save):
        path = save("v1,v2\n" + self.rows, "rows.csv")
        assert len(read(path, "v1", "v2")) == 4
        assert read(path, 1, 2)[0] == ("v1", "v2")
        with pytest.raises(ValueError, match=r"is the first line, 'label,text', a header or a row"):
            read(save("label,text\n" + self.rows, "rows.csv"), 1, 2)

    def test_a_known_label_settles_it(self, save):
        path = save("ham,hello\nspam,win\n", "rows.csv")
        assert read_labelled(path, known=["ham", "eggs"]).texts == ["hello", "win"]
        with pytest.raises(ValueError, match=r"is the first line, 'ham,hello', a header or a row"):
            read_labelled(path, known=["spam", "eggs"])

    def test_one_line_says_how_it_was_read(self, save):
        assert read_labelled(save(self.rows, "rows.csv")).summary.partition(": ")[2] == (
            "no header, label in column 1, text in column 2; 4 rows of 2 classes: 'ham' 2, 'spam' 2"
        )
        assert (
            "label in column 'y', text in column 'text'; 2 rows" in read_labelled(save("y\ttext\na\tb\nc\td\n")).summary
        )

    def test_names_that_occur_twice(self, save):
        with pytest.raises(ValueError, match="the first line has 'text' more than once"):
            read(save("label,text,text\na,b,c\n", "rows.csv"), "label", "text")

    def test_separators(self, save, capsys):
        semicolons = save(self.rows.replace(",", ";"), "rows.csv")
        message = r"the first line has one cell, 'ham;hello there', if ',' separates cells; .* --data\.separator ';'"
        with pytest.raises(ValueError, match=message):
            read(semicolons)
        assert read_labelled(semicolons, separator=";").labels == ["ham", "spam", "ham", "spam"]
        assert read_labelled(semicolons, separator="auto").labels == ["ham", "spam", "ham", "spam"]
        assert "cells are separated by ';'" in capsys.readouterr().err

    def test_a_tsv_in_quotes(self, save):
        assert read(save('"label"\t"text"\r\n"a"\t"one ""two""\tthree\nfour"\r\n"b"\t""\r\n')) == [
            ("a", 'one "two"\tthree\nfour'), ("b", ""),
        ]  # fmt: skip

    def test_a_long_cell(self, save):
        assert read(save(f"label,text\na,{'x' * 140_000}\n", "rows.csv")) == [("a", "x" * 140_000)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": null, "text": "x"}', "line 2: the label is null, no class; fill it in"),
        ('{"label": NaN, "text": "x"}', "line 2: the label is NaN, no class"),
        ('{"label": -1e999, "text": "x"}', "line 2: the label is -Infinity, no class"),
        ('{"label": ["a"], "text": "x"}', r"line 2: 'label' should be one label, a string or a number, got \['a'\]"),
        ('{"label": {"a": 1}, "text": "x"}', "line 2: 'label' should be one label"),
        ('{"label": "", "text": "x"}', "line 2: the label is empty"),
        ('{"label": "a", "text": null}', "line 2: 'text' should be a string, got None"),
        ('{"label": "a", "text": ["x"]}', r"line 2: 'text' should be a string, got \['x'\]"),
        ('{"label": "a", "text": "x\\ud83e"}', r"line 2: 'text' has \\ud83e, half of a character"),
        ('{"label": "\\udc00", "text": "x"}', r"line 2: 'label' has \\udc00, half of a character"),
        ('{"label": "a", "label": "b", "text": "x"}', "line 2: not JSON .the key 'label' occurs twice"),
        ("[" * 100_000, "line 2: not JSON"),
        ('"text"', "line 2: no object with a label and a text, but a str"),
    ],
)
def test_jsonl_says_what_is_no_label_and_no_text(save, line, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_labelled(save('{"label": "None", "text": "\\ud83e\\udd37"}\n' + line, "rows.jsonl"))


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", '"1"'), ('"1"', "1"), ("1", "1.0"), ("1.0", "1"), ("1e0", "1"), ("1.0", '"1"'), ("2.5", '"2.5"'),
     ("true", '"true"'), ('"false"', "false"), ("10", "1e1"), ("-0.0", "0")],
)  # fmt: skip
def test_a_class_is_written_in_one_way(save, first, second) -> None:
    lines = [f'{{"label": {label}, "text": "x"}}' for label in ('"other"', first, first, "7", second)]
    shown = [json.dumps(json.loads(label)) for label in (second, first)]
    message = f"line 5: the label {shown[0]} may be the same class as {shown[1]} in line 2; write both in the same way"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_labelled(save("\n".join(lines), "rows.jsonl"))


def test_classes_that_differ_are_classes(save) -> None:
    labels = ["1", "true", '"one"', "2.5", "2", '"True"', '"1 x"', "9007199254740993", "9007199254740992"]
    path = save("\n".join(f'{{"label": {label}, "text": "x"}}' for label in labels), "rows.jsonl")
    assert read_labelled(path).labels == [
        "1", "true", "one", "2.5", "2", "True", "1 x", "9007199254740993", "9007199254740992",
    ]  # fmt: skip


def test_a_class_called_none_is_a_class(save) -> None:
    rows = save('{"label": "None", "text": "x"}\n{"label": "null", "text": "y"}', "rows.jsonl")
    assert read(rows) == [("None", "x"), ("null", "y")]
    assert read(save("None\tx\nNA\ty\nNone\tz\n"))[:2] == [("None", "x"), ("NA", "y")]


class TestTexts:
    def test_lines(self, save):
        assert read_texts(save("label,text\n a \n\nb", "new.txt")) == ["label,text", " a ", "", "b"]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("new.csv", 'id,Text\n1,"one, two"\n2,"three\n"\n'),
            ("new.tsv", "id\ttext\n1\tone, two\n"),
            ("new.jsonl", '{"id": 1, "text": "one, two"}\n'),
        ],
    )
    def test_columns_of_texts(self, save, name, content):
        assert read_texts(save(content, name))[0] == "one, two"

    def test_named_columns(self, save):
        assert read_texts(save("id,body\n1,one\n", "new.csv"), "body") == ["one"]
        assert read_texts(save("1,one\n2,two\n", "new.csv"), 2) == ["one", "two"]

    @pytest.mark.parametrize(("name", "separator"), [("new.tsv", "\t"), ("new.csv", ",")])
    def test_a_file_that_training_read(self, save, capsys, name, separator):
        file = save(f"ham{separator}noon\nspam {separator}win\n", name)
        assert read_texts(file, known=["ham", "spam"]) == ["noon", "win"]
        told = f"{file}: no header, label in column 1, which is not looked at, text in column 2; 2 texts"
        assert told in capsys.readouterr().err

    @pytest.mark.parametrize(
        "content",
        ["ham\tnoon\neggs\twin\n", "ham\tnoon\nspam\n", "ham\tnoon\t3\nspam\twin\t4\n", "label\ttexts\nham\tnoon\n"],
    )
    def test_what_may_be_something_else_than_labels_is_refused(self, save, content):
        with pytest.raises(ValueError, match="a header or a text"):
            read_texts(save(content, "new.tsv"), known=["ham", "spam"])

    def test_a_file_of_one_column(self, save, capsys):
        path = save('"one, two"\nthree\n', "new.csv")
        assert read_texts(path, "one, two") == ["three"]
        # 2 may be where labelled texts were read
        for position in (1, 2, "1"):
            assert read_texts(path, position) == ["one, two", "three"]
        assert f"{path}: no header, texts in column 1; 2 texts" in capsys.readouterr().err
        with pytest.raises(ValueError, match=r"is the first line, 'one, two', a header or a text\? If it is a header"):
            read_texts(path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("new.csv", "a,b\n1,2\n", r"is the first line, 'a,b', a header or a text\? If .* as in --data\.text NAME"),
            ("new.csv", "", "is empty; it should have a text in each line"),
            ("new.csv", "label,text\na\n", "a row has 1 cells, 'a', and no text, which is in column 2"),
            ("new.txt", "a\rb\rc\r", r"lines end in \\r alone"),
            (
                "new.jsonl",
                '{"text": "a"}\n{"txt": "b"}',
                "line 2: no object with 'text'; name the key",
            ),
            ("new.jsonl", "", "is empty"),
            ("new.txt", "", "is empty"),
        ],
    )
    def test_what_is_none(self, save, name, content, message):
        with pytest.raises(ValueError, match=message):
            read_texts(save(content, name))
