"""Pictures in sequence as the bytes of a .gif or .mp4 file."""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def encode(pictures: Iterable[np.ndarray], suffix: str, fps: int) -> bytes:
    """Return the file: ``pictures`` are (height, width, 3) bytes of equal shape; the last stays for a second.

    Raises
    ------
    ValueError
        If ``.mp4`` is asked for where ffmpeg is not installed.
    """
    return _gif(pictures, fps) if suffix == ".gif" else _mp4(pictures, fps)


def _gif(pictures: Iterable[np.ndarray], fps: int) -> bytes:
    from PIL import Image

    frames = [Image.fromarray(picture) for picture in pictures]
    # one palette for all: one each would flicker. It is that of the last picture, where all colours have come up
    palette = frames[-1].quantize(254, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[np.argmax(colours.sum(axis=1))] = 255  # the quantiser greys the page
    palette.putpalette(colours.ravel().tolist())
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    stream = io.BytesIO()
    duration = [round(1000 / fps)] * (len(frames) - 1) + [1000]
    frames[0].save(
        stream,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=duration,
        loop=0,
        disposal=1,
    )
    return stream.getvalue()


def _mp4(pictures: Iterable[np.ndarray], fps: int) -> bytes:
    from shutil import which

    program = which("ffmpeg")
    if program is None:
        raise ValueError("an .mp4 needs ffmpeg, which is not installed: write a .gif instead")
    frames = list(pictures)
    frames += frames[-1:] * fps
    height, width = (side - side % 2 for side in frames[0].shape[:2])  # the codec wants even sides
    raw = b"".join(np.ascontiguousarray(frame[:height, :width]).tobytes() for frame in frames)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "flow.mp4"
        command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += [
            "-s",
            f"{width}x{height}",
            "-r",
            str(fps),
            "-i",
            "-",
            "-pix_fmt",
            "yuv420p",
            str(target),
        ]
        done = subprocess.run(command, input=raw, capture_output=True, check=False)
        if done.returncode:
            raise ValueError(f"ffmpeg refused: {done.stderr.decode(errors='replace').strip()}")
        return target.read_bytes()
