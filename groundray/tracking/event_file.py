"""An event file of TensorBoard: one record for each step, with all its metrics.

TensorBoard's protocol buffers are generated modules, of which type checkers know nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


class EventFile:
    """An event file, open for writing."""

    def __init__(self, path: Path):
        """Begin a file whose readers drop the steps of former files of the same folder."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step=0, session_log=start)

    def scalars(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Write numbers by tag, in float32, of a time in seconds since 1970."""
        pairs = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(when, step=step, summary=self._summaries.Summary(value=pairs))

    def text(self, tag: str, text: str) -> None:
        """Write a text, which is shown as Markdown."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(step=0, summary=text_pb(tag, text))

    def table(self, tag: str, values: Mapping[str, Any]) -> None:
        """Write names and values as a table."""
        lines = (f"| {name} | {_cell(value)} |" for name, value in values.items())
        self.text(tag, "\n".join(("| name | value |", "|---|---|", *lines)))

    def hyperparameters(self, values: Mapping[str, Any], began: float) -> None:
        """Write the run's row on the page of hyperparameters; `began` is in seconds since 1970."""
        info = import_module("tensorboard.plugins.hparams.plugin_data_pb2").SessionStartInfo(start_time_secs=began)
        for name, value in values.items():
            if isinstance(value, bool):
                info.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = _cell(value)
        self._hparams("session_start_info", info)

    def end(self, status: str) -> None:
        """Write how the run ended: FINISHED, FAILED or another word."""
        self.text("status", status)
        api = import_module("tensorboard.plugins.hparams.api_pb2")
        known = {"FINISHED": api.STATUS_SUCCESS, "FAILED": api.STATUS_FAILURE}
        info = import_module("tensorboard.plugins.hparams.plugin_data_pb2").SessionEndInfo(
            status=known.get(status, api.STATUS_UNKNOWN), end_time_secs=time.time()
        )
        self._hparams("session_end_info", info)

    def flush(self) -> None:
        """Let readers see what is written."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _hparams(self, part: str, info: Any) -> None:
        from tensorboard.plugins.hparams import metadata

        data = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData(**{part: info})
        about = metadata.create_summary_metadata(data)
        value = self._summaries.Summary.Value(tag=f"_hparams_/{part}", metadata=about, tensor=metadata.NULL_TENSOR)
        self._write(summary=self._summaries.Summary(value=[value]))

    def _write(self, when: float | None = None, **content: Any) -> None:
        event = self._events.Event(wall_time=time.time() if when is None else when, **content)
        self._records.write(event.SerializeToString())


def _cell(value: Any) -> str:
    """Return a value as text on a line of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())
