"""What a run leaves behind: one folder with tables, figures and a record of how it was made.

```
<run>/
  run.json               command, seed, configuration, versions, machine, time, how it ended
  artifacts/index.json   what there is, with titles and captions
  artifacts/<name>.csv   tables
  artifacts/<name>.svg   figures, and the same as <name>.png
  gradient_features/     what GradientFeatureCallback records, where it is given no other folder
  report.html            the page that `lightning-suite report <run>` makes of all this
```
"""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, remove_abandoned, write_csv, write_json
from lightning_suite.json_text import load_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# The packages whose version can change a result; those that are not installed are left out.
_PACKAGES = (
    "lightning-suite",
    "torch",
    "lightning",
    "pytorch-lightning",
    "torchmetrics",
    "jsonargparse",
    "numpy",
    "transformers",
    "peft",
    "datasets",
)
# Where a run keeps files that appear by a rename, seen from the folder of all runs.
_WRITTEN = (
    *("*", "*/artifacts", "*/checkpoints"),
    *("*/gradient_features", "*/gradient_features/shards"),
)
# The same figure must give the same bytes: a fixed salt for the ids, glyphs as paths (no fonts of
# the reader's machine), and no date.
_SVG_RC = {"svg.hashsalt": "lightning-suite", "svg.fonttype": "path"}


@dataclass(frozen=True)
class Artifact:
    """One entry of ``artifacts/index.json``.

    Attributes:
        name: Name of the files without suffix.
        kind: ``"table"`` or ``"figure"``.
        files: File names inside ``artifacts/``.
        title: Heading on the report page.
        caption: One or more sentences that say how to read it.
        section: Section of the report page; empty for the default section.
    """

    name: str
    kind: Literal["table", "figure"]
    files: tuple[str, ...]
    title: str
    caption: str = ""
    section: str = ""


class RunFolder:
    """The folder of one run. It is made when the first file is written.

    Each write is atomic. The index is read again before each change, so callbacks may share a
    folder; only one process (rank 0) should write to it.

    Args:
        path: The folder; it need not exist.

    Example:
        >>> import tempfile
        >>> folder = RunFolder(tempfile.mkdtemp())
        >>> folder.add_table("slopes", [{"rule": "sp", "slope": 0.5}], title="Slopes").name
        'slopes.csv'
        >>> [artifact.title for artifact in folder.index()]
        ['Slopes']
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.artifacts = self.path / "artifacts"

    def add_table(
        self,
        name: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        title: str,
        caption: str = "",
        section: str = "",
        columns: Sequence[str] | None = None,
    ) -> Path:
        """Write ``artifacts/<name>.csv`` and list it in the index.

        Args:
            name: Letters, digits, ``.``, ``_`` and ``-``; replaces a table of the same name.
            rows: One mapping a row.
            title: Heading on the report page.
            caption: How to read the table.
            section: Section of the report page.
            columns: The header; default: the keys of the first row.

        Returns:
            The path of the CSV file.

        Raises:
            SuiteError: The name is not a plain name, or the index is damaged.
        """
        _check_name(name)
        path = self.artifacts / f"{name}.csv"
        write_csv(path, rows, columns)
        self._add(Artifact(name, "table", (path.name,), title, caption, section))
        return path

    def add_figure(
        self, name: str, figure: Figure, *, title: str, caption: str = "", section: str = ""
    ) -> Path:
        """Write ``artifacts/<name>.svg`` and ``.png`` (150 dpi) and list them in the index.

        The same figure gives the same bytes. The figure stays open: closing it is the caller's.

        Args:
            name: Letters, digits, ``.``, ``_`` and ``-``; replaces a figure of the same name.
            figure: A matplotlib figure, best drawn inside
                `lightning_suite.report.style.figure_style()`.
            title: Heading on the report page.
            caption: How to read the figure.
            section: Section of the report page.

        Returns:
            The path of the SVG file.

        Raises:
            SuiteError: The name is not a plain name, or the index is damaged.
        """
        _check_name(name)
        svg, png = self.artifacts / f"{name}.svg", self.artifacts / f"{name}.png"
        with atomic_write(svg, "wb") as file:
            save_svg(figure, file)
        with atomic_write(png, "wb") as file:
            save_png(figure, file)
        self._add(Artifact(name, "figure", (svg.name, png.name), title, caption, section))
        return svg

    def write_record(
        self,
        *,
        command: Sequence[str],
        seed: int | None,
        config: str | None,
        note: str = "",
        state: Literal["running", "finished"] = "finished",
    ) -> None:
        """Write ``run.json``: how to make this run again, and on what it was made.

        Args:
            command: The command line, word by word.
            seed: The seed, if one was set.
            config: The resolved configuration as text (YAML).
            note: A sentence for the reader of the report.
            state: ``"running"`` if the record is written at the start; `finish` then ends it.
        """
        torch = sys.modules.get("torch")  # a record must not be the reason to load torch
        record = {
            "command": [_whole(word) for word in command],
            "seed": seed,
            "note": _whole(note),
            "state": state,
            "time": _now(),
            "versions": {"python": platform.python_version(), **_versions()},
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads() if torch else None,
            "config": config,
        }
        write_json(self.path / "run.json", record)
        if state == "running":
            self._tidy()

    def finish(self, stopped_by: str = "") -> None:
        """Note in ``run.json`` that the run has ended, and when; without a record, do nothing.

        Args:
            stopped_by: What ended it before its time, such as an exception; empty if all went well.

        Raises:
            SuiteError: The record is damaged.
        """
        if not (record := self.record()):
            return
        record["state"] = "stopped" if stopped_by else "finished"
        record["stopped_by"] = _whole(stopped_by)
        record["ended"] = _now()
        write_json(self.path / "run.json", record)

    def index(self) -> list[Artifact]:
        """Return what the run has left so far, in the order in which it was first written.

        Raises:
            SuiteError: ``artifacts/index.json`` is damaged or names files outside the folder.
        """
        path = self.artifacts / "index.json"
        entries = _read_json(path)
        if entries is None:
            return []
        if not isinstance(entries, list):
            raise SuiteError(f"{path}: expected a list of artifacts. {_REDO}")
        return [_artifact(path, number, entry) for number, entry in enumerate(entries, 1)]

    def record(self) -> dict[str, Any]:
        """Return the content of ``run.json``; empty if there is none.

        Raises:
            SuiteError: The file is damaged.
        """
        path = self.path / "run.json"
        record = _read_json(path)
        if record is None:
            return {}
        if not isinstance(record, dict):
            raise SuiteError(f"{path}: expected a JSON object. {_REDO}")
        return record

    def _tidy(self) -> None:
        """Remove what killed runs have left half written in the folders beside this one."""
        for pattern in _WRITTEN:
            for folder in self.path.parent.glob(pattern):
                if folder.is_dir():
                    remove_abandoned(folder)

    def _add(self, new: Artifact) -> None:
        entries = self.index()
        for place, old in enumerate(entries):
            if (old.kind, old.name) == (new.kind, new.name):
                entries[place] = new
                break
        else:
            entries.append(new)
        write_json(self.artifacts / "index.json", [asdict(entry) for entry in entries])


def save_svg(figure: Figure, file: IO[bytes]) -> None:
    """Write a matplotlib figure as SVG, with the same bytes for the same figure."""
    matplotlib = import_extra("matplotlib", "report")
    with matplotlib.rc_context(_SVG_RC), _any_letters():
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})


def save_png(figure: Figure, file: IO[bytes]) -> None:
    """Write a matplotlib figure as PNG, 150 dpi, with the same bytes for the same figure."""
    with _any_letters():
        figure.savefig(file, format="png", bbox_inches="tight", dpi=150)


@contextmanager
def _any_letters() -> Iterator[None]:
    """Names in a figure may hold letters that no font here has: a box is drawn, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from font", UserWarning)
        yield


def _whole(text: str) -> str:
    r"""Write bytes of a file's name that are no text as ``\udcff``: no file could hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


_REDO = "Delete the file or run the command that made it again."


def _check_name(name: str) -> None:
    if len(name) > 100 or not _NAME.fullmatch(name):
        raise SuiteError(
            f"Artifact name {name!r}: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit, at most 100 of them."
        )


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_json(path: Path) -> Any:
    try:
        return load_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as err:  # broken UTF-8 is one too
        raise SuiteError(f"{path}: not readable as JSON ({err}). {_REDO}") from err
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err


def _artifact(path: Path, number: int, entry: Any) -> Artifact:
    """Check one entry; the index may come from someone else, so nothing in it is trusted."""
    where = f"{path}: entry {number}"
    if not isinstance(entry, dict):
        raise SuiteError(f"{where}: expected an object. {_REDO}")
    text = {key: entry.get(key, "") for key in ("name", "kind", "title", "caption", "section")}
    for key, value in text.items():
        if not isinstance(value, str):
            raise SuiteError(f"{where}: '{key}' must be text, not {value!r}. {_REDO}")
    if text["kind"] not in {"table", "figure"}:
        raise SuiteError(f"{where}: 'kind' must be 'table' or 'figure', not {text['kind']!r}.")
    files = entry.get("files")
    if not isinstance(files, list) or not files:
        raise SuiteError(f"{where}: 'files' must be a list of file names. {_REDO}")
    for name in (text["name"], *files):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SuiteError(f"{where}: {name!r} is not a plain file name. {_REDO}")
    return Artifact(
        name=text["name"],
        kind="table" if text["kind"] == "table" else "figure",
        files=tuple(files),
        title=text["title"],
        caption=text["caption"],
        section=text["section"],
    )
