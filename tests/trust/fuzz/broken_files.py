"""A corpus of image and video files, whole ones and ones that attack their reader, built by code."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

Edit = tuple[str, float, int]
"""`cut` at, `flip` a byte at, `zero` 16 bytes from, `repeat` 64 bytes at a share of the length, with a value."""


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Bytes after some edits."""
    spoilt = bytearray(content)
    for kind, share, value in edits:
        place = min(int(share * len(spoilt)), max(0, len(spoilt) - 1))
        if kind == "cut":
            del spoilt[place:]
        elif kind == "flip" and spoilt:
            spoilt[place] ^= value or 1
        elif kind == "zero":
            spoilt[place : place + 16] = bytes(len(spoilt[place : place + 16]))
        elif kind == "repeat":
            spoilt[place:place] = spoilt[place : place + 64]
    return bytes(spoilt)


def picture(size: tuple[int, int] = (40, 28), seed: int = 0) -> Image.Image:
    """A smooth picture with noise, RGB, of (width, height)."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    channels = [rows * 6 % 256, columns * 5 % 256, (rows + columns) * 3 % 256]
    noise = np.random.default_rng(seed).integers(0, 20, (size[1], size[0], 3))
    return Image.fromarray(((np.stack(channels, -1) + noise) % 256).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image in a file format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def whole_images() -> dict[str, bytes]:
    """Files that every reader must take, of many formats and modes."""
    base = picture()
    deep = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    frames = [picture(seed=seed) for seed in range(3)]
    palette = base.quantize(32)
    clear = base.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    files = {
        "rgb.png": encoded(base, "PNG"),
        "rgb.jpg": encoded(base, "JPEG"),
        "progressive.jpg": encoded(base, "JPEG", progressive=True),
        "gray.jpg": encoded(base.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(base.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(base.convert("CMYK"), "TIFF"),
        "deflate.tif": encoded(base, "TIFF", compression="tiff_deflate"),
        "16bit.png": encoded(deep, "PNG"),
        "16bit.tif": encoded(deep, "TIFF"),
        "bits.png": encoded(base.convert("1"), "PNG"),
        "bits.pbm": encoded(base.convert("1"), "PPM"),
        "alpha.png": encoded(clear, "PNG"),
        "alpha.webp": encoded(clear, "WEBP", lossless=True),
        "gray_alpha.png": encoded(clear.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "palette.gif": encoded(palette, "GIF"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "pages.tif": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "rgb.bmp": encoded(base, "BMP"),
        "rgb.ppm": encoded(base, "PPM"),
        "one_pixel.png": encoded(picture((1, 1)), "PNG"),
        "wrong_suffix.png": encoded(base, "JPEG"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"turned_{orientation}.jpg"] = encoded(base, "JPEG", exif=exif)
    return files


def unreadable_images() -> dict[str, bytes]:
    """Files of which no picture can be had."""
    whole = encoded(picture(), "PNG")
    photo = encoded(picture(), "JPEG")
    floats = Image.fromarray(np.linspace(-5, 5, 40 * 28, dtype=np.float32).reshape(28, 40))
    return {
        "empty.png": b"",
        "no_image.png": b"hello, I am no image" * 20,
        "zeros.jpg": bytes(4096),
        "head_only.png": whole[:33],
        "head_only.jpg": photo[:20],
        "half.png": whole[: len(whole) // 2],
        "half.jpg": photo[: len(photo) // 2],
        "no_width.png": png_header(0, 4),
        "no_height.png": png_header(4, 0),
        "floats.tif": encoded(floats, "TIFF"),
        "page.html": b"<!doctype html><title>404</title>",
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) run\n%%EOF\n",
        "text_bomb.png": whole[:33] + _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20))) + whole[33:],
    }


def bombs() -> dict[str, bytes]:
    """Small files that say they are, or are, of gigapixels."""
    exif_first = encoded(picture(), "JPEG").replace(
        b"\xff\xc0\x00\x11\x08\x00\x1c\x00\x28", b"\xff\xc0\x00\x11\x08" + b"\xff" * 4
    )
    return {
        "claims.png": png_header(60_000, 60_000),
        "claims_more.png": png_header(2**31 - 1, 2**31 - 1),
        "line.png": png_header(2**31 - 1, 1),
        "real.png": png_of_zeros(10_000, 10_000),
        "claims.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
        + struct.pack("<HH", 65_535, 65_535) + b"\0\x02\x02D\x01\0;",
        "claims.bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "claims.ppm": b"P6 100000 100000 255\n" + bytes(100),
        "claims.jpg": exif_first,
        "claims.tif": _tiff(70_000, 70_000),
    }  # fmt: skip


def exif_traps() -> dict[str, bytes]:
    """JPEG files whose EXIF block loops, lies about its lengths, or turns the picture in ways that do not exist."""
    tables = {
        "loop": _tiff_entry(0x8769, 4, 1, 8),
        "far": _tiff_entry(0x0112, 3, 1, 6, start=2**31),
        "endless": struct.pack("<H", 65_535) + b"\xff" * 24,
        "orientation_0": _tiff_entry(0x0112, 3, 1, 0),
        "orientation_9": _tiff_entry(0x0112, 3, 1, 9),
        "orientation_text": _tiff_entry(0x0112, 2, 4, 0x41414141),
        "orientation_many": _tiff_entry(0x0112, 3, 2**30, 8),
        "orientation_ratio": _tiff_entry(0x0112, 5, 1, 8),
    }
    photo = encoded(picture(), "JPEG")
    return {f"exif_{name}.jpg": _with_exif(photo, b"II*\0" + table) for name, table in tables.items()}


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and holds hardly any pixels."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(bytes(64))) + _chunk(b"IEND", b"")


def png_of_zeros(width: int, height: int) -> bytes:
    """A complete PNG of one colour: a few hundred kilobytes for gigabytes of pixels."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _tiff(width: int, height: int) -> bytes:
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 8)]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0)


def _tiff_entry(tag: int, kind: int, count: int, value: int, start: int = 8) -> bytes:
    return struct.pack("<IHHHII", start, 1, tag, kind, count, value) + struct.pack("<I", 8)


def _with_exif(photo: bytes, tiff: bytes) -> bytes:
    block = b"Exif\0\0" + tiff
    return photo[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + photo[2:]


def write_clip(
    path: Path, codec: str, size: tuple[int, int] = (64, 48), frames: int = 12, kind: str | None = None
) -> Path:
    """A video of brightening pictures."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8, options={"preset": "ultrafast"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pixels, 4
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), 20 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_whole_clips(folder: Path) -> list[Path]:
    """Videos that every reader must take."""
    return [
        write_clip(folder / "part2.mp4", "mpeg4"),
        write_clip(folder / "h264.mp4", "libx264"),
        write_clip(folder / "h264.mkv", "libx264"),
        write_clip(folder / "photos.avi", "mjpeg"),
        write_clip(folder / "vp9.webm", "libvpx-vp9"),
        write_clip(folder / "stream.ts", "mpeg4", kind="mpegts"),
        write_clip(folder / "one_frame.mp4", "mpeg4", frames=1),
        write_clip(folder / "odd_name Ünï 动画 #1%.mp4", "mpeg4"),
    ]


def write_unreadable_clips(folder: Path) -> list[Path]:
    """Videos of which no frames can be had, or not those of the file that is named."""
    whole = write_clip(folder / "whole.mp4", "mpeg4")
    small = write_clip(folder / "small.ts", "mpeg4", (32, 32), kind="mpegts")
    large = write_clip(folder / "large.ts", "mpeg4", kind="mpegts")
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"this is no video" * 50,
        "zeros.mkv": bytes(5000),
        "cut_before_index.mp4": whole.read_bytes()[: whole.stat().st_size // 2],
        "sizes_change.ts": large.read_bytes() + small.read_bytes(),
        "playlist.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{large}\n#EXT-X-ENDLIST\n".encode(),
        "hls.ts": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{large}\n#EXT-X-ENDLIST\n".encode(),
        "subtitles.mkv": b"1\n00:00:00,000 --> 00:00:02,000\nhello\n\n" * 5,
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [
        *(folder / name for name in contents),
        _zero_frames(folder / "zero_frames.mp4"),
        _sound(folder / "sound.mp4"),
    ]


def _zero_frames(path: Path) -> Path:
    """A container with a video stream and no picture in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return path


def _sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
