"""Event files for TensorBoard, by tensorboardX.

Its `SummaryWriter` writes in a thread. When that thread fails, for example on a full disk, the
training would wait for it forever. So the events are written here, one after the other.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import make_histogram

from fcn_jax.runtime import atomic

_BINS = 64


class EventFiles:
    """A folder with an event file for each process that trained the run; a `Logger`."""

    def __init__(self, folder: Path, step: int, evaluate_again: bool) -> None:
        """Drop the events that the run will write again, and begin another file.

        Args:
            folder: made if missing.
            step: events of later steps are dropped.
            evaluate_again: also drop the evaluation of that step.

        Raises:
            WriteError: the folder cannot be written.
        """
        with atomic.write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted(folder.glob("*tfevents*"))
            for path in files:
                _truncate(path, step, evaluate_again)
            # TensorBoard reads the files in the order of their names. A number comes first, because
            # the clock, whose time is part of the name, may have been set back.
            name = f"events.{len(files):04}"
            self._writer = EventsWriter(str(folder.absolute() / name), "")
            self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._write(step, {tag: {"simple_value": value} for tag, value in values.items()})

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Logger`."""
        self._write(step, {tag: {"image": _png(picture)} for tag, picture in pictures.items()})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """See `Logger`."""
        counted = {
            tag: {"histo": make_histogram(array.astype(np.float64), _BINS)}
            for tag, array in values.items()
        }
        self._write(step, counted)

    def close(self, *, failed: bool) -> None:
        """See `Logger`."""
        self._writer.close()

    def _write(self, step: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, **value) for tag, value in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()


def _png(picture: np.ndarray) -> Summary.Image:
    height, width, _ = picture.shape
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return Summary.Image(
        height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue()
    )


def read_events(path: Path) -> Iterator[tuple[bytes, Event]]:
    """Yield the stored form and the contents of each event of a file.

    A record is its length u64, a checksum, the event, and a checksum (TensorFlow's TFRecord). A
    record that a kill cut off ends the file.
    """
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            body = file.read(length + 4)
            if len(body) < length + 4:
                return
            try:
                yield header + body, Event.FromString(body[:-4])
            except DecodeError:
                return


def _truncate(path: Path, step: int, evaluate_again: bool) -> None:
    """Drop the events after a step from a file, and perhaps the evaluation of that step."""

    def keeps(event: Event) -> bool:
        tag = event.summary.value[0].tag if event.summary.value else ""
        is_evaluation = tag.startswith(("val/", "samples/"))
        return event.step < step or (event.step == step and not (evaluate_again and is_evaluation))

    kept = b"".join(stored for stored, event in read_events(path) if keeps(event))
    if len(kept) != path.stat().st_size:
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(kept)
