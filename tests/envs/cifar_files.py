"""Small files in CIFAR-10's python version, byte for byte as Python 2 would have pickled them."""

import hashlib
import struct
import tarfile

import numpy as np

from envs.tasks.cifar import ARCHIVE, FOLDER, MD5


def images_of(name, images):
    """Pixels ``[n, 3072]`` and labels of one file: every class equally often, brighter class by class."""
    rng = np.random.default_rng(list(MD5).index(name))
    labels = np.arange(images) % 10
    pixels = rng.integers(0, 50, (images, 3072)) + 20 * labels[:, None]
    return pixels.astype(np.uint8), labels


def _text(value):
    return b"U" + struct.pack("<B", len(value)) + value  # SHORT_BINSTRING, which Python 3 never writes


def _array(data):
    """A pickled uint8 array, by the opcodes that NumPy's ``__reduce__`` made Python 2 write."""
    raw = b"T" + struct.pack("<i", data.size) + data.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + _text(b"u1") + b"K\x00K\x01\x87R(K\x03" + _text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text(b"b") + b"\x87R"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"


def file_content(name, images):
    """One file; the labels are a list of ints, and what nobody reads is there too."""
    pixels, labels = images_of(name, images)
    items = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}("
        + (_text(b"batch_label") + _text(name.encode()))
        + (_text(b"labels") + b"](" + items + b"e")
        + (_text(b"data") + _array(pixels))
        + b"u."
    )


def write_cifar(path, images=40, archive=False):
    """Write all six files into a folder or an archive under ``path``; returns their MD5 sums."""
    folder = path / FOLDER
    folder.mkdir(parents=True)
    for name in MD5:
        (folder / name).write_bytes(file_content(name, images))
    if archive:
        with tarfile.open(path / ARCHIVE, "w:gz") as tar:
            tar.add(folder, FOLDER)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return md5_of(images)


def md5_of(images=40):
    return {name: hashlib.md5(file_content(name, images)).hexdigest() for name in MD5}
