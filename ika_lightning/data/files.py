"""Text out of files, and files that nobody ever meets half of."""

import gc
import gzip
import os
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_output", "decode", "read_lines", "without_garbage_collection", "write_atomically"]


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
        ValueError: If a line is not UTF-8, or the file is not what gzip writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_lines(write_atomically(Path(folder, "texts.txt"), b"one\r\n\r\nthree"))
        ['one', '', 'three']
    """
    if str(path) == "-":
        text = decode(sys.stdin.buffer.read(), "standard input")
    elif Path(path).is_file():
        text = decode(Path(path).read_bytes(), path, zipped=str(path).lower().endswith(".gz"))
    else:
        raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def check_output(path: str | Path) -> Path:
    """Check that a file can be written, before the work whose result it will hold.

    Args:
        path: Where the file is to go. An existing file is fine: it will be replaced. So is ``-``, standard output.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If its folder does not exist.
        ValueError: If the path is itself a folder.
        PermissionError: If its folder cannot be written to.

    Example:
        >>> check_output("nowhere/predictions.csv")
        Traceback (most recent call last):
        ...
        FileNotFoundError: cannot write nowhere/predictions.csv: there is no folder nowhere; create it first
    """
    path = Path(path)
    if str(path) == "-":
        return path
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: no permission to write in {path.parent}; choose another folder")
    return path


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a whole file or nothing: to a temporary name in the same folder first, then moved into place.

    Args:
        path: Where the file goes; a file already there is replaced. ``-`` is standard output.
        content: All of its bytes.

    Returns:
        The path.

    Raises:
        OSError: As :func:`check_output`, or if the disk refuses (the temporary file is removed again).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/a.txt", b"whole").read_text()
        'whole'
    """
    path = check_output(path)
    if str(path) == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return path
    # The name is unique, so that processes which write the same file at once cannot mix their bytes.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
