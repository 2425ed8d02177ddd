"""What a model makes of text that ships with the package: read once for a model, then kept on disk.

Kept by a hash of the model's weights and of the tokens, so that nothing has to be told apart by
name. A file that is damaged or gone is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from torch import Tensor

from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write
from lightning_suite.language.gguf import cache_folder
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.weights import weights_hash

_FORMAT = 1  # of the key: a change of what is read is a change of this
# Parameters times texts from which on reading takes longer than a few seconds.
_WORTH_KEEPING = 10**10


def kept_final_states(encoder: PromptEncoder, prompts: Sequence[str]) -> Tensor:
    """Return what :meth:`PromptEncoder.final_states` does, on the CPU, from the disk if there.

    Args:
        encoder: Reads the base model.
        prompts: N texts, template included.
    """
    size = sum(parameter.numel() for parameter in encoder.model.parameters())
    if size * len(prompts) < _WORTH_KEEPING:
        return encoder.final_states(prompts).cpu()
    ids = [encoder.format.encode_text(prompt) for prompt in prompts]
    what = [_FORMAT, weights_hash(encoder.model), ids]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    path = cache_folder() / "states" / f"{key}.safetensors"
    safetensors = import_extra("safetensors.torch", "llm")
    try:
        found: Tensor = safetensors.load(path.read_bytes())["states"]
        if found.ndim == 2 and len(found) == len(prompts) and found.is_floating_point():
            return found
    except (OSError, ValueError, KeyError, import_extra("safetensors", "llm").SafetensorError):
        pass  # not there, or damaged: it is made anew
    found = encoder.final_states(prompts).cpu()
    with atomic_write(path, "wb") as file:
        file.write(safetensors.save({"states": found.contiguous()}))
    return found
