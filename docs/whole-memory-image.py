#!/usr/bin/env python3
"""Makes a snapshot's shared memory image whole, with nothing but Python: see RESTORE-WITHOUT-KEYFRAME.md.

    whole-memory-image.py SNAPSHOT-DIR FILE

SNAPSHOT-DIR is HOME/vms/NAME/snapshots/ID and holds memory.pages and memory.map. FILE must not exist; QEMU loads it.
memory.map says which pages of the image lie in which other snapshot's file, at the same offset there.
docs/formats/snapshot.md has its bytes.
"""
import os
import struct
import sys

PAGE = 4096


def copy(source, dest, start, end):
    """The bytes from start to end, to the same place; holes stay holes."""
    while start < end:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError:  # no data behind it
            return
        stop = min(os.lseek(source, start, os.SEEK_HOLE), end, start + (1 << 20))
        if start < stop:
            os.pwrite(dest, os.pread(source, stop - start, start), start)
        start = max(start, stop)


def file_of(vm, snapshot):
    """A snapshot's file: whole, shared, or what is left of it after it was deleted."""
    for name in f"snapshots/{snapshot}/memory.mapped", f"snapshots/{snapshot}/memory.pages", f"memory/{snapshot}.pages":
        if os.path.exists(os.path.join(vm, name)):
            return os.open(os.path.join(vm, name), os.O_RDONLY)
    sys.exit(f"the memory of snapshot {snapshot} is missing")


def main(directory, dest):
    vm = os.path.dirname(os.path.dirname(os.path.abspath(directory)))
    with open(os.path.join(directory, "memory.map"), "rb") as file:
        header = file.read(104)
        magic, version, page, segments, runs, length, _own = struct.unpack_from("<8sIIIIQQ", header)
        if (magic, version, page) != (b"KFMEMMAP", 1, PAGE):
            sys.exit("memory.map is not of a form that is known here")
        ids = [struct.unpack("<QQ", file.read(16))[0] for _ in range(segments)]
        file.read(32)  # the header's checksum
        table = [struct.unpack("<QII", file.read(16)) for _ in range(runs)]
    own = os.open(os.path.join(directory, "memory.pages"), os.O_RDONLY)
    files = [file_of(vm, f"{number:016x}") for number in ids]
    whole = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(whole, length)
    copy(own, whole, 0, length)
    for first, count, segment in table:
        copy(files[segment], whole, first * PAGE, (first + count) * PAGE)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
