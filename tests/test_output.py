"""Files are whole or as they were, and what is no plain file is written through."""

import errno
import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ika_lightning.output import (
    OutputError,
    check_output,
    follow,
    is_standard_output,
    open_output,
    remove_parts,
    temporary_name,
    write_output,
)

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestPlainFiles:
    @pytest.mark.parametrize("step", ["replace", "chmod"])
    def test_whole_or_nothing(self, step, tmp_path, monkeypatch):
        path = write_output(tmp_path / "a.txt", b"first")

        def refuse(*_: object, **options: object) -> None:
            raise OSError(errno.EIO, "disk on fire")

        if step == "replace":
            monkeypatch.setattr(os, "replace", refuse)
            with pytest.raises(OutputError) as error:
                write_output(path, b"second")
            assert str(error.value) == f"cannot write {path}: disk on fire"
            assert contents(tmp_path) == {"a.txt": b"first"}
        else:
            # permissions are kept where the system can
            monkeypatch.setattr(os, "chmod", refuse)
            write_output(path, b"second")
            assert contents(tmp_path) == {"a.txt": b"second"}

    def test_a_full_disk(self, tmp_path, file_size_limit: Callable[[int], AbstractContextManager[None]]):
        path = write_output(tmp_path / "a.txt", b"first")
        with file_size_limit(100), pytest.raises(OSError, match=r"^cannot write .*a\.txt: File too large$"):
            write_output(path, bytes(101))
        assert contents(tmp_path) == {"a.txt": b"first"}

    def test_an_error_of_the_writer_is_told_as_it_is(self, tmp_path):
        with pytest.raises(ZeroDivisionError), open_output(tmp_path / "a.txt") as file:
            file.write(b"%d" % (1 // 0))
        with (
            pytest.raises(FileNotFoundError, match=r"No such file or directory: .*source"),
            open_output(tmp_path / "b"),
        ):
            (tmp_path / "source").read_bytes()
        assert list(tmp_path.iterdir()) == []

    def test_it_may_be_closed_early(self, tmp_path):
        with open_output(tmp_path / "a.txt") as file:
            file.write(b"whole")
            file.close()
            assert contents(tmp_path).keys() != {"a.txt"}
        assert contents(tmp_path) == {"a.txt": b"whole"}

    def test_long_names(self, tmp_path):
        name = "ä" * 127
        write_output(tmp_path / name, b"x")
        assert contents(tmp_path) == {name: b"x"}

    def test_places_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; create it"):
            check_output(tmp_path / "nowhere" / "out.csv")
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*file;"):
            check_output(tmp_path / "file" / "out.csv")
        with pytest.raises(ValueError, match="it is a folder"):
            check_output(tmp_path)

    def test_a_file_that_is_protected(self, tmp_path, monkeypatch):
        path = write_output(tmp_path / "a.txt", b"first")
        path.chmod(0o444)
        monkeypatch.setattr(os, "access", lambda path, mode: stat.S_IMODE(os.stat(path).st_mode) & 0o200 > 0)
        with pytest.raises(PermissionError, match=r"cannot write .*a\.txt: it is write-protected; choose another name"):
            write_output(path, b"second")
        assert contents(tmp_path) == {"a.txt": b"first"}
        path.chmod(0o644)

    def test_a_folder_that_is_protected(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(PermissionError, match=r"no permission to write in .*; choose another folder"):
            write_output(tmp_path / "a.txt", b"")

    @posix
    def test_permissions(self, tmp_path):
        before = os.umask(0o027)
        try:
            new = write_output(tmp_path / "new", b"1")
            old = write_output(tmp_path / "old", b"1")
            old.chmod(0o604)
            write_output(old, b"2")
        finally:
            os.umask(before)
        assert (mode_of(new), mode_of(old)) == (0o640, 0o604)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone may give files away")
    def test_owners(self, tmp_path):
        path = write_output(tmp_path / "a", b"1")
        os.chown(path, 12345, 54321)
        path.chmod(0o4711)
        write_output(path, b"2")
        found = path.stat()
        assert (found.st_uid, found.st_gid, mode_of(path)) == (12345, 54321, 0o4711)

    @posix
    def test_owners_that_the_system_does_not_let_be_kept(self, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        path = write_output(tmp_path / "a", b"1")
        path.chmod(0o600)
        monkeypatch.setattr(os, "chown", refuse)
        write_output(path, b"2")
        assert path.read_bytes() == b"2" and mode_of(path) == 0o600


@posix
class TestLinks:
    def test_what_they_point_to_is_replaced(self, tmp_path):
        (tmp_path / "there").mkdir()
        target = tmp_path / "there" / "file"
        target.write_text("old")
        target.chmod(0o606)
        number = target.stat().st_ino
        link = tmp_path / "link"
        # over a second link, from one folder to another
        link.symlink_to("there/second")
        (tmp_path / "there" / "second").symlink_to("file")
        write_output(link, b"new")
        assert link.is_symlink() and (tmp_path / "there" / "second").is_symlink()
        assert contents(tmp_path / "there") == {"file": b"new", "second": b"new"}
        assert mode_of(target) == 0o606 and target.stat().st_ino != number

    def test_or_made(self, tmp_path):
        link = tmp_path / "link"
        link.symlink_to("file")
        write_output(link, b"new")
        assert link.is_symlink() and not (tmp_path / "file").is_symlink()
        assert contents(tmp_path) == {"link": b"new", "file": b"new"}

    def test_to_nowhere(self, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "no" / "file")
        with pytest.raises(FileNotFoundError, match=rf"cannot write {link}: there is no folder {tmp_path}/no; create"):
            check_output(link)

    def test_in_a_circle(self, tmp_path):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        for use in (check_output, is_standard_output):
            with pytest.raises(
                OutputError, match=r"cannot write .*a: its symbolic links lead in a circle; remove them"
            ):
                use(tmp_path / "a")

    def test_to_a_folder(self, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("folder")
        with pytest.raises(ValueError, match="it is a folder"):
            check_output(tmp_path / "link")
        write_output(tmp_path / "link" / "a", b"x")
        assert contents(tmp_path / "folder") == {"a": b"x"}


def read_in_a_thread(path: Path) -> Callable[[], bytes]:
    """Read a FIFO to its end; return what waits for it."""
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()

    def wait() -> bytes:
        reader.join(timeout=20)
        return found[0]

    return wait


def make_device(path: Path, kind: int, number: tuple[int, int]) -> None:
    try:
        os.mknod(path, kind | 0o600, os.makedev(*number))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("the system lets this user make no devices, or none in this folder")


@posix
class TestWhatIsNoPlainFile:
    @pytest.mark.parametrize("linked", [False, True])
    def test_a_fifo(self, linked, tmp_path):
        fifo = path = tmp_path / "fifo"
        os.mkfifo(fifo)
        if linked:
            path = tmp_path / "link"
            path.symlink_to(fifo)
        # to look at it must not end what reads from it
        check_output(path)
        wait = read_in_a_thread(fifo)
        write_output(path, b"one\ntwo\n")
        assert wait() == b"one\ntwo\n"
        assert stat.S_ISFIFO(fifo.lstat().st_mode) and path.is_symlink() == linked

    def test_a_fifo_that_nobody_reads_any_more(self, tmp_path):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(OutputError, match=r"cannot write .*fifo: Broken pipe"), open_output(fifo) as file:
            os.close(reader)
            file.write(b"x")
        assert [path.name for path in tmp_path.iterdir()] == ["fifo"]

    @pytest.mark.skipif(sys.platform != "linux", reason="devices have other numbers there")
    def test_a_device(self, tmp_path):
        swallows, full = tmp_path / "swallows", tmp_path / "full"
        make_device(swallows, stat.S_IFCHR, (1, 3))
        make_device(full, stat.S_IFCHR, (1, 7)) if not full.exists() else None
        write_output(swallows, b"x")
        (tmp_path / "link").symlink_to(full)
        for path in (full, tmp_path / "link"):
            with pytest.raises(OutputError, match=rf"^cannot write {path}: No space left on device$"):
                write_output(path, b"x")
        assert stat.S_ISCHR(swallows.lstat().st_mode) and stat.S_ISCHR(full.lstat().st_mode)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "link", "swallows"]

    @pytest.mark.skipif(sys.platform != "linux", reason="devices have other numbers there")
    def test_a_block_device(self, tmp_path):
        if shutil.which("losetup") is None or os.geteuid() != 0:
            pytest.skip("only root may make a block device of a file")
        image = tmp_path / "image"
        image.write_bytes(bytes(8192))
        loop = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
        if loop.returncode:
            pytest.skip(f"no block device can be made of a file here: {loop.stderr.strip()}")
        number = os.stat(loop.stdout.strip()).st_rdev
        try:
            device = tmp_path / "device"
            make_device(device, stat.S_IFBLK, (os.major(number), os.minor(number)))
            write_output(device, b"on the device")
            os.sync()
            assert stat.S_ISBLK(device.lstat().st_mode) and image.read_bytes().startswith(b"on the device")
        finally:
            subprocess.run(["losetup", "--detach", loop.stdout.strip()], check=True)


# writes to the path it is given, between two other lines
WRITE = "import sys; from ika_lightning.output import write_output; print('before'); write_output(sys.argv[1], b'x\\n')"
WRITE += "; print('after')"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which ``write PATH`` writes to a path."""
    script = f'write() {{ "{sys.executable}" -c "{WRITE}" "$@"; }}\n{command}'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@posix
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
class TestDescriptors:
    def test_the_shells_pipes(self, tmp_path):
        done = shell("write >(gzip > x.gz) && wait $!", tmp_path)
        assert (done.returncode, done.stdout) == (0, "before\nafter\n"), done.stderr
        assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == b"x\n"

    @pytest.mark.parametrize("path", ["/dev/stdout", "-", "/dev/fd/1", "link"])
    def test_standard_output(self, path, tmp_path):
        (tmp_path / "link").symlink_to("/dev/stdout")
        (tmp_path / "out").write_text("there already\n")
        # added to what is there, and in between what the process says itself
        done = shell(f"write {path} | cat && write {path} >> out", tmp_path)
        assert (done.returncode, done.stdout) == (0, "before\nx\nafter\n"), done.stderr
        assert (tmp_path / "out").read_text() == "there already\nbefore\nx\nafter\n"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "out"]

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("write /dev/fd/0 < in", "cannot write /dev/fd/0: it is open for reading only"),
            ("write /dev/fd/9", "cannot write /dev/fd/9: Bad file descriptor"),
            ("write - >&-", "cannot write standard output: Bad file descriptor"),
        ],
    )
    def test_what_is_not_open(self, command, message, tmp_path):
        (tmp_path / "in").write_text("mine")
        done = shell(command, tmp_path)
        assert done.stderr.splitlines()[-1] == f"ika_lightning.output.OutputError: {message}"
        assert contents(tmp_path) == {"in": b"mine"}

    def test_a_reader_that_has_gone(self, tmp_path):
        (tmp_path / "quietly.py").write_text(WRITE.replace("print('before'); ", "").replace("; print('after')", ""))
        done = shell(f'{{ sleep 0.2; "{sys.executable}" quietly.py -; }} 2> error | true', tmp_path)
        assert done.stderr == ""
        said = (tmp_path / "error").read_text().splitlines()[-1]
        assert said == "ika_lightning.output.OutputError: cannot write standard output: Broken pipe"

    def test_which_they_are(self, tmp_path):
        assert follow("/dev/stdout") == 1 and follow("/dev/stderr") == 2
        assert is_standard_output("/dev/stdout") and not is_standard_output("/dev/stderr")
        assert follow(tmp_path / "a") == tmp_path.resolve() / "a"


def test_standard_output_in_memory(monkeypatch) -> None:
    """As notebooks have it."""
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    print("before")
    write_output("-", b"x\n")
    assert stream.buffer.getvalue() == b"before\nx\n"
    # as contextlib.redirect_stdout is mostly used
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    print("before")
    write_output("-", "\u00e9\n".encode())
    assert text.getvalue() == "before\n\u00e9\n"


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    part = temporary_name(tmp_path / "last.ckpt")
    old = tmp_path / ".last.ckpt.1234.part"
    mine = [tmp_path / name for name in (".last.ckpt.mine.part", "x.part", ".x.part", "last.ckpt", ".a.12.partial")]
    for file in (part, old, *mine):
        file.touch()
    remove_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(mine)
