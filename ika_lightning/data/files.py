"""Text out of files."""

import gc
import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["decode", "read_lines", "split_lines", "without_garbage_collection"]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Put off Python's search for garbage, which takes most of the time where millions of cells are made and kept."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def decode(content: bytes, source: object, *, zipped: bool = False) -> str:
    r"""Read bytes as UTF-8. A byte order mark, as spreadsheets write it, is no part of the text.

    Args:
        content: All of the bytes.
        source: What errors call the file.
        zipped: Whether the bytes are gzipped.

    Returns:
        The text, with line ends as they are.

    Raises:
        ValueError: If the bytes are not UTF-8 (the message names the line), or no complete gzip file.

    Example:
        >>> decode("naïve\n".encode("latin-1"), "notes.txt")
        Traceback (most recent call last):
        ...
        ValueError: notes.txt, line 1: byte 0xef is not UTF-8; save the file with UTF-8 encoding
    """
    if zipped:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{source} is no complete gzip file ({error}); fetch or compress it again") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file with UTF-8 encoding"
        ) from None


def read_lines(path: str | Path) -> list[str]:
    r"""Read a text file of one text a line, UTF-8, compressed if its name ends in ``.gz``.

    Lines end in ``\n`` or ``\r\n`` and nowhere else: other characters that :meth:`str.splitlines` splits at are part of
    texts. A blank line is an empty text; the last line needs no end.

    Args:
        path: The file, or ``-`` for standard input.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not UTF-8, the file is not what gzip writes, or its lines end in ``\r`` alone.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "texts.txt").write_bytes(b"one\r\n\r\nthree")
        ...     read_lines(Path(folder, "texts.txt"))
        ['one', '', 'three']
    """
    if str(path) == "-":
        text = decode(sys.stdin.buffer.read(), "standard input")
    elif Path(path).is_file():
        text = decode(Path(path).read_bytes(), path, zipped=str(path).lower().endswith(".gz"))
    else:
        raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
    return split_lines(text, "standard input" if str(path) == "-" else path)


def split_lines(text: str, source: object) -> list[str]:
    r"""Cut a text into lines, which end in ``\n`` or ``\r\n``; the last needs no end.

    Args:
        text: The text.
        source: What errors call the file.

    Raises:
        ValueError: If lines end in ``\r`` alone, so that all of them would be one.

    Example:
        >>> split_lines("one\r\ntwo\rhalves\n", "texts.txt")
        ['one', 'two\rhalves']
    """
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise ValueError(
            f"{source}: lines end in \\r alone, as on old computers, and would be read as one; save the file with \\n"
        )
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
