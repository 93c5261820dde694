"""Files that the package writes: whole or not at all, and through whatever is not a plain file."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "OutputError",
    "check_output",
    "follow",
    "is_standard_output",
    "open_output",
    "remove_parts",
    "temporary_name",
    "write_output",
]

# Where the system shows the open descriptors of a process as files: Linux, and the others.
_DESCRIPTOR = re.compile(r"/proc/(?P<process>\d+)(?:/task/\d+)?/fd/(?P<number>\d+)|/dev/fd/(?P<other>\d+)")
_PART = re.compile(r"\..+\.(?:[0-9a-f]{32}|\d+)\.part")
# Links on the way to a file, at most; that many Linux follows itself.
_LINKS = 40


class OutputError(OSError):
    """A file that could not be written, and why, in a line.

    Args:
        path: The file, as the user called it.
        reason: What the system says, or its error.

    Example:
        >>> raise OutputError("a.csv", "No space left on device")
        Traceback (most recent call last):
        ...
        ika_lightning.output.OutputError: cannot write a.csv: No space left on device
    """

    def __init__(self, path: str | Path, reason: str | OSError) -> None:
        said = (reason.strerror or str(reason)) if isinstance(reason, OSError) else reason
        super().__init__(f"cannot write {path}: {said}")


def follow(path: str | Path) -> Path | int:
    """Follow the symbolic links of a path to the file that it means, there or not.

    Args:
        path: A file, a link, or something like ``/dev/stdout``.

    Returns:
        An absolute path that is no link, or the number of the open descriptor of this process that the path names.

    Raises:
        OutputError: If the links lead nowhere, in a circle.

    Example:
        >>> follow("new.csv") == Path.cwd().resolve() / "new.csv"
        True
    """
    place = Path(path)
    for _ in range(_LINKS):
        place = Path(os.path.realpath(place.parent), place.name)
        if (found := _DESCRIPTOR.fullmatch(str(place))) and found["process"] in (None, str(os.getpid())):
            return int(found["other"] or found["number"])
        if not place.is_symlink():
            return place
        place = place.parent / os.readlink(place)
    raise OutputError(path, "its symbolic links lead in a circle; remove them or give another name")


def is_standard_output(path: str | Path) -> bool:
    """Whether what is written to a path goes to standard output: ``-``, ``/dev/stdout``, or a link to it.

    Example:
        >>> is_standard_output("-"), is_standard_output("predictions.csv")
        (True, False)
    """
    return str(path) == "-" or follow(path) == 1


def check_output(path: str | Path) -> Path:
    """Check that a file can be written, before the work whose result it will hold.

    Args:
        path: Where the file is to go. An existing file is fine: it will be replaced. So is ``-``, standard output.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If its folder does not exist.
        ValueError: If the path is itself a folder.
        PermissionError: If its folder, or the file that is there, cannot be written to.
        OutputError: If it is a link that leads in a circle, or a descriptor that is closed or only read from.

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
    target = follow(path)
    if isinstance(target, int):
        _check_descriptor(target, path)
        return path
    # as the user wrote it, where no link leads elsewhere
    folder = target.parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {folder}; create it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"cannot write {path}: it is write-protected; choose another name")
    if not _is_special(path) and not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: no permission to write in {folder}; choose another folder")
    return path


@contextmanager
def open_output(path: str | Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write, which is there whole at the end of the ``with`` block, or as it was before.

    A plain file is written under a temporary name in its folder and moved into place in one step. A file that is
    replaced leaves its permissions, and its owner where the system allows it, to the new one. Of a symbolic link, what
    it points to is replaced, or made. Everything else is written through, as it is: FIFOs, devices, what the shell
    makes of ``>(gzip > x.gz)``, and open descriptors such as ``/dev/stdout``.

    Args:
        path: The file; ``-`` is standard output.
        sync: Wait until the bytes are on the disk, for a file that is to survive a power cut.

    Yields:
        The file, for bytes. It may be closed before the block ends, which is when it takes its place.

    Raises:
        OSError: As :func:`check_output`; an :class:`OutputError` if the system refuses later. A plain file is then
            what it was before, and nothing is left beside it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open_output(f"{folder}/a.txt") as file:
        ...         _ = file.write(b"whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path = check_output(path)
    try:
        target = 1 if str(path) == "-" else follow(path)
        if isinstance(target, int):
            with _descriptor(target) as file:
                yield file
        elif _is_special(path):
            with open(os.open(path, os.O_WRONLY), "wb") as file:
                yield file
        else:
            with _replacement(target, sync) as file:
                yield file
    except (OSError, RuntimeError) as error:
        # libraries in C++ make errors of their own of what the system has said
        if (refusal := _refusal(error)) is None or not _is_about(refusal, path):
            raise
        name = "standard output" if str(path) == "-" else path
        raise OutputError(name, refusal) from error


def write_output(path: str | Path, content: bytes) -> Path:
    """Write a whole file or nothing, as :func:`open_output` does.

    Args:
        path: Where the file goes; a file already there is replaced. ``-`` is standard output.
        content: All of its bytes.

    Returns:
        The path.

    Raises:
        OSError: As :func:`open_output`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_output(f"{folder}/a.txt", b"whole").read_text()
        'whole'
    """
    with open_output(path) as file:
        file.write(content)
    return Path(path)


def temporary_name(path: Path) -> Path:
    """Return a name beside ``path`` that no other process chooses, and that :func:`remove_parts` knows.

    Example:
        >>> temporary_name(Path("a.txt")).match(".a.txt.*.part")
        True
    """
    # names may have 255 bytes in all
    short = path.name.encode()[:200].decode(errors="ignore")
    return path.with_name(f".{short}.{uuid.uuid4().hex}.part")


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder.

    Args:
        folder: A folder in which no other process writes, or this would take away what it is about to move into place.

    Example:
        >>> remove_parts(Path("nowhere"))
    """
    for file in list(folder.iterdir()) if folder.is_dir() else []:
        if _PART.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextmanager
def _replacement(target: Path, sync: bool) -> Iterator[BinaryIO]:
    """A file of another name that takes the place of ``target`` in the end."""
    part = temporary_name(target)
    try:
        with part.open("xb") as file:
            with suppress(FileNotFoundError):
                _keep_permissions(target.stat(), part)
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(target)
        if sync:
            _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _descriptor(number: int) -> Iterator[BinaryIO]:
    """An open descriptor of this process, behind what Python has still kept back for it."""
    if number in (1, 2):
        if (stream := (sys.stdout, sys.stderr)[number - 1]) is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        stream.flush()
        try:
            number = stream.fileno()
        except io.UnsupportedOperation:
            # a stream in memory, as notebooks and tests put in the place of standard output; some take text alone
            if isinstance(stream, io.TextIOWrapper):
                yield stream.buffer
            else:
                content = io.BytesIO()
                yield content
                stream.write(content.getvalue().decode())
            return
    with open(os.dup(number), "wb") as file:
        yield file


def _check_descriptor(number: int, path: Path) -> None:
    try:
        os.fstat(number)
    except OSError as error:
        raise OutputError(path, error) from error
    if sys.platform != "win32":
        import fcntl

        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OutputError(path, "it is open for reading only")


def _is_special(path: Path) -> bool:
    """Whether something is there that is neither a plain file nor a folder, links followed."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _keep_permissions(old: os.stat_result, new: Path) -> None:
    # before the permissions, some of which a change of owner takes away; not every system, user and disk can
    if sys.platform != "win32":
        for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
            with suppress(OSError):
                os.chown(new, owner, group)
    with suppress(OSError):
        new.chmod(stat.S_IMODE(old.st_mode))


def _refusal(error: BaseException | None) -> OSError | None:
    """What the system has said, in the chain of exceptions that it led to; None if it has said nothing."""
    for _ in range(9):
        if error is None or isinstance(error, OutputError):
            return None
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_about(refusal: OSError, path: Path) -> bool:
    """Whether the system refused this file, under whatever name, and not another that the ``with`` block reads."""
    name = refusal.filename
    return name is None or str(name) == str(path) or _PART.fullmatch(Path(str(name)).name) is not None


def _sync_folder(folder: Path) -> None:
    # of the names in a folder, Windows takes care itself
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
