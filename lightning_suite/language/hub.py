"""Whether a model's name has to be asked of the Hugging Face Hub, and whether it answers.

Without a network its client tries each of some dozen files again and again: a minute of messages
before a mistyped folder is told.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra

_SECONDS = 5.0  # that an answer may take
# One of them comes with every model and tokenizer.
_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")


def only_local(name: str) -> bool:
    """Whether a name of the Hub is to be looked up in the local cache alone.

    Args:
        name: No folder, and no packaged model.

    Returns:
        True where it is in the cache and the Hub does not answer.

    Raises:
        SuiteError: It is not in the cache, and the Hub does not answer or may not be asked.
    """
    hub = import_extra("huggingface_hub", "llm")
    constants = import_extra("huggingface_hub.constants", "llm")
    offline = bool(constants.HF_HUB_OFFLINE)
    if not offline and answers(constants.ENDPOINT):
        return False
    if _is_cached(hub, name):
        return True
    why = "HF_HUB_OFFLINE forbids to ask the Hub" if offline else "the Hub does not answer"
    raise SuiteError(
        f"{name!r} is no folder here and not in the local cache of the Hugging Face Hub, and {why} "
        f"({constants.ENDPOINT}). Give a folder that save_pretrained wrote, a .gguf file or "
        "package:NAME; or try again with a network."
    )


def answers(endpoint: str, seconds: float = _SECONDS) -> bool:
    """Whether a server answers, whatever it says; proxies of the environment are used.

    Args:
        endpoint: Its address.
        seconds: To wait.
    """
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as err:
        return isinstance(err.reason, ssl.SSLError)  # other certificates than the client's
    except (OSError, ValueError):
        return False


def _is_cached(hub: Any, name: str) -> bool:
    try:
        return any(isinstance(hub.try_to_load_from_cache(name, file), str) for file in _FILES)
    except ValueError:  # no such name is possible there
        return False
