"""Word vectors that others have trained, from a file."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["WordVectors", "read_vectors"]


class WordVectors(NamedTuple):
    """Vectors of those words that a file has.

    Args:
        found: (f,) int64, which of the words.
        vectors: (f, e) float32, the vector of each.
    """

    found: Tensor
    vectors: Tensor


def read_vectors(path: str, words: list[str]) -> WordVectors:
    r"""Read the vectors of some words from a text file of GloVe or word2vec (``.gz`` too), in one pass.

    A line is a word and its numbers, separated by single blanks; a first line of two whole numbers, as word2vec writes
    it, is skipped. Of a word that occurs twice the first line counts. Memory is needed for the words wanted alone.

    Args:
        path: The file.
        words: The words wanted.

    Returns:
        The words found, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has another number of columns than the first, or something else than numbers, or if none
            of the words is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "vectors.txt")
        ...     _ = file.write_text("the 0.5 -1\nrose 2 3\nis 4 5\n")
        ...     read_vectors(str(file), ["a", "rose", "is"])
        WordVectors(found=tensor([1, 2]), vectors=tensor([[2., 3.],
                [4., 5.]]))
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path} of word vectors; check the spelling and the folder")
    wanted = {word.encode(): number for number, word in enumerate(words)}
    found: list[int] = []
    vectors: list[np.ndarray] = []
    width = 0
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                cells = line.rstrip().split(b" ")
                if number == 1 and len(cells) == 2 and all(map(bytes.isdigit, cells)):
                    continue
                width = width or len(cells) - 1
                # a "word" of some files has blanks in it, but a number too many is a damaged line
                if width < 1 or len(cells) <= width or any(map(_is_number, cells[1:-width])):
                    raise ValueError(
                        f"{path}, line {number}: {len(cells) - 1} numbers after the word where the first line has "
                        f"{width}; is it a whole file of vectors in text format?"
                    )
                place = wanted.pop(b" ".join(cells[:-width]), None)
                if place is not None:
                    vectors.append(_numbers(cells[-width:], path, number))
                    found.append(place)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip file ({error}); fetch or compress it again") from None
    if not found:
        raise ValueError(f"{path} has none of the {len(words)} words wanted; is it of this language and case?")
    return WordVectors(torch.tensor(found), torch.from_numpy(np.stack(vectors)))


def _numbers(cells: list[bytes], path: str, line: int) -> np.ndarray:
    if not all(map(_is_number, cells)):
        strange = next(cell for cell in cells if not _is_number(cell))
        raise ValueError(
            f"{path}, line {line}: {strange.decode(errors='replace')!r} is no number; fetch the file again"
        )
    return np.array(cells, dtype=np.float32)


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
