"""Messages of jsonargparse, shortened to what a reader needs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from lightning_suite.errors import SuiteError, did_you_mean

# Names of loggers that are no classes.
_NAME_CLASS = " Name the class: --trainer.logger {0} --trainer.logger.save_dir FOLDER"
_LOGGERS = {
    "wandb": " Name the class, WandbLogger; `-c overlays/wandb` adds it, `-c "
    "overlays/wandb_offline` without network",
    "csv": _NAME_CLASS.format("CSVLogger") + " (one is there without this option)",
    "tensorboard": _NAME_CLASS.format("TensorBoardLogger"),
}


def condense(message: str) -> str:
    """Shorten a message of jsonargparse to what a reader needs.

    >>> condense('''Parser key "trainer.max_epochs":
    ...   Does not validate against any of the Union subtypes
    ...   Subtypes: [<class 'int'>, <class 'NoneType'>]
    ...   Errors:
    ...     - Expected a <class 'int'>
    ...     - Expected a <class 'NoneType'>
    ...   Given value type: <class 'str'>
    ...   Given value: abc''')
    "trainer.max_epochs: expected int or null, got 'abc'"
    """
    key = re.match(r'Parser key "(.+?)":', message)
    prefix = f"{key[1]}: " if key else ""
    if inner := _inside_class(message):
        name, problem = inner
        return f"{prefix}{name}: {condense(problem)}"
    if wrong := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        return f"{prefix}{wrong[1]} is not a {wrong[2]}"
    if exact := re.search(r"Not of type \w+: (.*)", message):
        return prefix + exact[1]
    expected = [
        (literal or simple or subclass).rpartition(".")[2].replace("NoneType", "null")
        for literal, simple, subclass in re.findall(
            r"Expected an? typing\.Literal\[(.*)\]|Expected an? <class '([\w.]+)'>"
            r"|Not a valid subclass of (\w+)",
            message,
        )
    ]
    if not expected:
        return prefix + " ".join(message[key.end() if key else 0 :].split())
    given = re.search(r"(?:Given value|Got value): ([^{\[\n]*)$", message, re.MULTILINE)
    got = f", got {given[1]!r}" if given else ""
    advice = did_you_mean(given[1], re.findall(r"'(.*?)'", " ".join(expected))) if given else ""
    if key and given and key[1].rpartition(".")[2] == "logger":
        advice = _LOGGERS.get(given[1].lower(), advice)
    elif expected == ["list"] and given and not advice:
        advice = f" Write [{given[1]}]."
    end = f".{advice}" if advice else ""
    return f"{prefix}expected {' or '.join(dict.fromkeys(expected))}{got}{end}"


def _inside_class(message: str) -> tuple[str, str] | None:
    """Return the class whose arguments are wrong, and the message about them."""
    lines = message.splitlines()
    for number, line in enumerate(lines):
        found = re.match(r"(\s*)- Problem with given class_path '(?:.+\.)?(\w+)':", line)
        if not found:
            continue
        deeper = lines[number + 1 :]
        indent = len(found[1]) + 2
        end = next(
            (n for n, item in enumerate(deeper) if len(item) - len(item.lstrip()) < indent),
            len(deeper),
        )
        return found[2], textwrap.dedent("\n".join(deeper[:end])).strip()
    return None


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Bring out the `SuiteError` of a constructor that the parser calls in this block.

    jsonargparse tries every type that an argument may have, and wraps what a constructor raised
    into a long list of why none of them fits. The message names the class that was being made.

    Raises:
        SuiteError: Somewhere behind the error there was one.
    """
    try:
        yield
    except Exception as err:
        if (found := _suite_error(err)) is None:
            raise
        made = _class_being_made(found.__traceback__)
        named = made is None or str(found).startswith(made)
        raise SuiteError(str(found) if named else f"{made}: {found}") from err


def _suite_error(error: BaseException | None) -> SuiteError | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, SuiteError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _class_being_made(traceback: TracebackType | None) -> str | None:
    """Return the class whose ``__init__`` was called first: the one that the user named."""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
            return type(frame.f_locals["self"]).__name__
        traceback = traceback.tb_next
    return None
