import gzip
import io
import sys
from types import SimpleNamespace

import pytest

from ika_lightning.data.files import read_lines


@pytest.mark.parametrize(
    "content, texts",
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\n\ntwo", ["one", "", "two"]),
        (b"\n", [""]),
        (b"", []),
        ("\ufeffone\r\nt\u2028w\x85o\r\n".encode(), ["one", "t\u2028w\x85o"]),
    ],
)
def test_lines_are_the_same_from_wherever_they_come(content, texts, tmp_path, monkeypatch) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    (tmp_path / "texts.txt.GZ").write_bytes(gzip.compress(content))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    for path in (tmp_path / "texts.txt", tmp_path / "texts.txt.GZ", "-"):
        assert read_lines(path) == texts


def test_lines_that_cannot_be_read(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*texts\.txt; check the spelling"):
        read_lines(tmp_path / "texts.txt")
    (tmp_path / "texts.txt").write_bytes(b"a\nb\xff")
    with pytest.raises(ValueError, match=r"texts\.txt, line 2: byte 0xff is not UTF-8"):
        read_lines(tmp_path / "texts.txt")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff")))
    with pytest.raises(ValueError, match="standard input, line 1: byte 0xff is not UTF-8"):
        read_lines("-")
