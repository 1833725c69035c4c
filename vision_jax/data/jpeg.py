"""What is known of a JPEG without decoding it, and JPEGs of which a part can be decoded alone.

Most of the time that decoding takes is spent on the entropy code, which can only be read from its beginning. Two things
save a training crop from paying for all of it:

- A baseline image can be told to end below the crop, by writing a smaller height into its header.
- Restart markers make the code independent from there on. `encode` writes one after every other block of 16x16
  pixels, so that the blocks under a crop can be put together to a smaller JPEG, with the same pixels. A comment at the
  beginning of the file tells where they are; the two take 4 to 8 % more bytes.

Everything here follows ITU-T T.81, the standard of JPEG; its names are in brackets.
"""

import dataclasses
import functools
import io
import struct
from typing import NamedTuple

import numpy as np
import PIL.Image

# Start of a frame in all its kinds [SOF0 to SOF15]; C4, C8 and CC are something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE = frozenset({0xC0, 0xC1})
_START, _END, _SCAN, _COMMENT = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xfe"  # [SOI, EOI, SOS, COM]
_FRAME = struct.Struct(">BBHBHH")  # marker, length, bits, height, width
# The comment that `encode` writes: a name; length of the file, height, width, position of the frame and of the entropy
# code; then the length of each restart interval, in 16 bits.
_NAME = b"vision_jax 1\n"
_INDEX = struct.Struct("<IHHHH")
_INDEX_AT = 6 + len(_NAME)


def encode(image: PIL.Image.Image, quality: int) -> bytes:
    """Encodes an image with halved color resolution, restart markers, and a comment that tells where these are.

    Args:
        image: RGB.
        quality: 1 to 100, libjpeg's.
    """
    columns = -(-image.width // 16)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_blocks=1 if columns % 2 else 2)
    return _with_index(file.getvalue())


def _with_index(data: bytes) -> bytes:
    """Adds the comment that tells where the restart intervals are, unless there are too many for one."""
    header = read_header(data)
    starts = _interval_starts(data, header)
    assert starts is not None  # `encode` has just asked for them
    lengths = np.diff(starts, axis=1).astype("<u2").tobytes()
    size = _INDEX_AT - 4 + _INDEX.size + len(lengths)  # of the segment, with its own two bytes
    shift = 2 + size
    if size > 0xFFFF or header.scan + shift > 0xFFFF:
        return data
    index = _INDEX.pack(len(data) + shift, header.height, header.width, header.frame + shift, header.scan + shift)
    return b"".join((_START, _COMMENT, struct.pack(">H", size), _NAME, index, lengths, data[2:]))


class Box(NamedTuple):
    """A rectangle in pixels, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What a JPEG says of itself before its first scan.

    Attributes:
        height, width: in pixels.
        num_components: 1 for grayscale, 3 for color, 4 for print.
        sequential: whether it is of one scan, Huffman-coded from top to bottom [baseline or extended sequential].
        block: height and width in pixels of what is coded together [MCU].
        restart_interval: blocks between restart markers; 0: there are none.
        frame: position of the marker that precedes the size [SOF].
        scan: position of the first byte of the entropy code.
        index: position of the lengths of the restart intervals; 0: the file does not tell them.
    """

    height: int
    width: int
    num_components: int
    sequential: bool
    block: tuple[int, int]
    restart_interval: int
    frame: int
    scan: int
    index: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.block[0]), -(-self.width // self.block[1])


def read_header(data: bytes) -> Header:
    """Reads the header of a JPEG.

    Raises:
        ValueError: if there is none that is whole.
    """
    if data[6:_INDEX_AT] == _NAME and (header := _indexed_header(data)) is not None:
        return header
    position, interval, frame = 2, 0, -1
    try:
        while True:
            if data[position] != 0xFF:
                raise ValueError("its header is damaged")
            marker = data[position + 1]
            if marker == 0xFF:  # fill bytes may stand before a marker
                position += 1
                continue
            length = (data[position + 2] << 8) | data[position + 3]
            if marker in _FRAMES:
                frame, kind = position, marker
            elif marker == 0xDD:  # [DRI]
                interval = (data[position + 4] << 8) | data[position + 5]
            elif marker == 0xDA:  # [SOS]
                break
            position += 2 + length
        if frame < 0:
            raise ValueError("its header does not tell its size")
        height, width, components = struct.unpack_from(">HHB", data, frame + 5)
        samplings = [data[frame + 11 + 3 * i] for i in range(components)]
        # A scan of one component is coded block by block, whatever its sampling.
        samplings = samplings if components > 1 else [0x11]
        block = (8 * max(s & 15 for s in samplings), 8 * max(s >> 4 for s in samplings))
        sequential = kind in _BASELINE and data[position + 4] == components and height > 0
    except (IndexError, struct.error) as error:
        raise ValueError("its header is cut off") from error
    return Header(height, width, components, sequential, block, interval, frame, position + 2 + length)


def tidied(data: bytes) -> bytes:
    """Returns a JPEG without the oddities of its header that libjpeg warns of, and that change no pixel.

    These are bytes between segments [of which a marker must begin each], a JFIF revision other than 1, and parameters
    of a first scan of sequential code other than the only ones it can have (T.81, B.2.3).

    Raises:
        ValueError: if the header is cut off.
    """
    out, position, sequential = bytearray(_START), 2, False
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise ValueError("its header is cut off")
        marker = data[position + 1]
        if marker in (0x00, 0xFF):  # no marker, or a fill byte
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        segment = bytearray(data[position:end])
        if len(segment) != end - position:
            raise ValueError("its header is cut off")
        if marker == 0xE0 and segment[4:9] == b"JFIF\0":
            segment[9:10] = b"\x01"
        elif marker in _FRAMES:
            sequential = marker in _BASELINE
        elif marker == 0xDA and sequential:
            segment[-3:] = b"\x00\x3f\x00"
        out += segment
        position = end
        if marker == 0xDA:
            return bytes(out + data[position:])


def _indexed_header(data: bytes) -> Header | None:
    """Returns the header of a file of `encode`; None if it has been changed since, or damaged."""
    try:
        size, height, width, frame, scan = _INDEX.unpack_from(data, _INDEX_AT)
        stated = _FRAME.unpack_from(data, frame)
    except struct.error:
        return None
    if size != len(data) or stated != (0xFF, 0xC0, 17, 8, height, width) or data[scan - 14 : scan - 12] != _SCAN:
        return None
    interval = 1 if -(-width // 16) % 2 else 2
    return Header(height, width, 3, True, (16, 16), interval, frame, scan, _INDEX_AT + _INDEX.size)


def part(data: bytes, header: Header, top: int, left: int, bottom: int, right: int) -> tuple[bytearray, Box]:
    """Returns a JPEG of the blocks that a rectangle needs, or of as little more as can be had.

    The pixels of the rectangle are those of the whole image, bit for bit: a margin of one pixel is kept, since color
    is interpolated between neighbors.

    Args:
        data, header: a sequential JPEG.
        top, left, bottom, right: the rectangle, in pixels, the ends excluded.

    Returns:
        the JPEG, and which part of the image it is.
    """
    block_height, block_width = header.block
    rows, columns = header.grid
    last_row = min(rows, bottom // block_height + 1)
    starts = _interval_starts(data, header)
    if starts is None:
        # The code can only be read from its beginning, but not to its end.
        box = Box(0, 0, min(header.height, last_row * block_height), header.width)
        out = bytearray(data)
    else:
        step = header.restart_interval
        # Color of at most two pixels across is not interpolated by libjpeg: five pixels have three.
        first = max(0, min(left - 1, header.width - 5)) // (block_width * step)
        first_row = max(0, top - 1) // block_height
        last = min(columns // step, right // (block_width * step) + 1)
        box = Box(
            first_row * block_height,
            first * block_width * step,
            min(header.height, last_row * block_height),
            min(header.width, last * block_width * step),
        )
        out = _join_intervals(data, header, starts[first_row:last_row], first, last)
    struct.pack_into(">HH", out, header.frame + 5, box.bottom - box.top, box.right - box.left)
    return out, box


def _join_intervals(data: bytes, header: Header, starts: np.ndarray, first: int, last: int) -> bytearray:
    """Returns the header and, of each row in `starts`, the intervals from `first` to `last`, with their markers.

    Args:
        data, header: the whole JPEG.
        starts: (rows, intervals in a row + 1) positions of the marker before each interval, and of that after the row.
        first, last: columns of `starts`.
    """
    begins, ends = starts[:, first], starts[:, last]
    pieces = [data[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    out = bytearray(data[: header.scan - 2])
    out += b"".join(pieces)
    out += _END
    # A marker carries a number that counts from 0 to 7 and again. In place of a first one is the header's end.
    shifts = np.cumsum(ends - begins) - ends + (header.scan - 2)
    positions = (starts[:, first:last] + shifts[:, None]).ravel()
    np.frombuffer(out, np.uint8)[positions + 1] = _numbers(positions.size)
    out[header.scan - 2 : header.scan] = data[header.scan - 2 : header.scan]
    return out


@functools.lru_cache(maxsize=4096)
def _numbers(count: int) -> np.ndarray:
    """Returns the second bytes of so many restart markers, of which the first is none."""
    return (0xD0 | (np.arange(-1, count - 1) & 7)).astype(np.uint8)


def _interval_starts(data: bytes, header: Header) -> np.ndarray | None:
    """Returns where each restart interval's marker is: (rows, intervals in a row + 1) int64, of every row its end too.

    None if there are no restart markers, or fewer than the header says, or intervals that end within a row.
    """
    rows, columns = header.grid
    step = header.restart_interval
    if not step or columns % step:
        return None
    per_row = columns // step
    starts = np.empty((rows, per_row + 1), np.int64)
    ends = None
    if header.index and header.index + 2 * rows * per_row < header.scan:
        ends = np.cumsum(np.frombuffer(data, "<u2", rows * per_row, header.index), dtype=np.int64) + (header.scan - 2)
    if ends is None or ends[-1] != len(data) - 2:  # there is no comment, or it is damaged
        code = np.frombuffer(data, np.uint8)
        escapes = (code[header.scan : -1] == 0xFF).nonzero()[0] + header.scan
        ends = escapes[code[escapes + 1] >= 0xD0][: rows * per_row]  # in the code itself, FF is followed by 00
        if len(ends) < rows * per_row or data[ends[-1] + 1] != _END[1]:
            return None
    starts[:, 1:] = ends.reshape(rows, per_row)
    starts[0, 0] = header.scan - 2
    starts[1:, 0] = starts[:-1, -1]
    return starts
