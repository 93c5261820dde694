"""Where data sets live on this computer, and how they get there."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs

from ika_lightning.lazy import pooch, requests
from ika_lightning.output import write_output

__all__ = ["RemoteFile", "data_root", "fetch", "find", "label_first"]

TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public data set: what it is called here, where it comes from, how to know that it arrived whole.

    Args:
        path: Its place under the data root, with forward slashes, e.g. ``"regression/boston.csv"``.
        url: The public address of the original; None if it cannot be downloaded.
        size: Size in bytes of the file as stored here, after ``convert``; None if it is not known.
        sha256: SHA-256 of the file as stored here, in hexadecimal; None if it is not known.
        convert: Turns the original's bytes into the stored ones; the identity by default. It must not raise on
            bytes that are something else (an error page, say): the checksum tells.
        otherwise: What to do if it is not there and has no ``url``.
    """

    path: str
    url: str | None
    size: int | None
    sha256: str | None
    convert: Callable[[bytes], bytes] = bytes
    otherwise: str = ""


def label_first(encoding: str) -> Callable[[bytes], bytes]:
    r"""Make a conversion of lines of ``label text`` into rows of ``label<TAB>text`` in UTF-8.

    Args:
        encoding: That of the original.

    Example:
        >>> label_first("latin-1")("1 na\xefve text\n".encode("latin-1")).decode()
        '1\tnaïve text\n'
    """

    def convert(original: bytes) -> bytes:
        lines = original.decode(encoding, errors="replace").split("\n")
        return "\n".join(line.replace(" ", "\t", 1) for line in lines).encode()

    return convert


def data_root(root: str | None = None) -> Path:
    """The folder that holds the data sets.

    Args:
        root: The folder; by default what the environment variable ``IKA_DATA`` says, else ``ika_lightning`` in the
            user's cache folder, wherever the system has it (on Linux ``XDG_CACHE_HOME``, else ``~/.cache``).

    Returns:
        The folder, which need not exist yet.

    Example:
        >>> data_root("my_data").name
        'my_data'
    """
    if chosen := root or os.environ.get("IKA_DATA"):
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("ika_lightning", appauthor=False)


def find(path: str, root: str | None = None, *, otherwise: str) -> Path:
    """Find a file that has to be there already.

    Args:
        path: Its place under the data root.
        root: See :func:`data_root`.
        otherwise: What the reader of the error can do if the file is not there.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such file.

    Example:
        >>> find("regression/mine.csv", "nowhere", otherwise="ask its author")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no regression/mine.csv under the data root nowhere; ask its author
    """
    file = data_root(root) / path
    if not file.is_file():
        raise FileNotFoundError(f"there is no {path} under the data root {data_root(root)}; {otherwise}")
    return file


def fetch(remote: RemoteFile, root: str | None = None) -> Path:
    """Find a file under the data root, or download it there.

    A file that is there is used as it is, so that an own edition may stand in for the original. A download is
    checked and moved into place in one step: other processes see the whole file or none.

    Args:
        remote: The file wanted.
        root: See :func:`data_root`.

    Returns:
        The file on this computer.

    Raises:
        FileNotFoundError: If it is not there and cannot be downloaded.
        ValueError: If what was downloaded is not the expected file. Nothing is kept.
        PermissionError: If the data root cannot be written to.
    """
    folder = data_root(root)
    file = folder / remote.path
    if file.is_file():
        return file
    if remote.url is None:
        return find(remote.path, root, otherwise=remote.otherwise)
    content = remote.convert(_download(remote, folder))
    digest = hashlib.sha256(content).hexdigest()
    if remote.sha256 is not None and (len(content), digest) != (remote.size, remote.sha256):
        raise ValueError(
            f"{remote.url} did not give the expected {remote.path}: {len(content)} bytes with sha256 {digest} "
            f"instead of {remote.size} bytes with sha256 {remote.sha256}; try again, or put a copy at {file} yourself"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"cannot create {file.parent} ({error.strerror}); choose another data root with --data.root or IKA_DATA"
        ) from None
    return write_output(file, content)


def _download(remote: RemoteFile, folder: Path) -> bytes:
    with TemporaryDirectory() as scratch:
        try:
            pooch.HTTPDownloader(timeout=TIMEOUT)(remote.url, str(Path(scratch, "file")), None)
        # no network, no such page, cut off on the way
        except OSError as error:
            if isinstance(error, requests.RequestException) and error.response is not None:
                # it holds the connection open
                error.response.close()
            raise FileNotFoundError(
                f"there is no {remote.path} under the data root {folder}, and {remote.url} could not be downloaded "
                f"({error}); fetch it with a network, or point --data.root or IKA_DATA at a folder that has it"
            ) from None
        return Path(scratch, "file").read_bytes()
