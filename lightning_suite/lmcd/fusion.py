"""Semantic-cognitive fusion: a student's learnt vector reads an exercise through a language model.

Source: arXiv 2505.21239, phase 2. The sequence is the exercise's text and then one token that is
the student. Attention is causal, so the student sees the exercise and never the reverse, and all
students of one exercise can share its prefix. Three ways give the same states:

* ``row``: one row a student, as published; the truth that the others are held to;
* ``packed``: one row an exercise, its students behind it, see :mod:`lightning_suite.lmcd.layout`;
* ``cached``: for a frozen backbone: the prefix is computed once, a student costs one token.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.extras import import_extra
from lightning_suite.lmcd.layout import (
    Prefixes,
    additive,
    assign_slots,
    packed_mask,
    packed_positions,
    split_wide,
    spread,
)
from lightning_suite.lmcd.packing_check import check_positions, refuse_mask, refuse_window
from lightning_suite.lmcd.prefix_cache import PrefixCache, ReadPrefix, join_cache, split_cache

MODES = ("auto", "row", "packed", "cached")
Mode = Literal["auto", "row", "packed", "cached"]
_WIDTH = 64  # most students of a row behind a cached prefix


class Fused(NamedTuple):
    """What is read of N pairs of a student and an exercise, float32.

    Attributes:
        student: e_u, the student's vector, which has seen no text: [N, H].
        exercise: q_v, the last layer before the student token, the same for every student: [N, H].
        relative: d_uv, the last layer at the student token: [N, H].
    """

    student: Tensor
    exercise: Tensor
    relative: Tensor


class StudentFusion(nn.Module):
    """Vectors of students, and a language model without its head that shows them exercises.

    A backbone without trainable parameters is kept in evaluation mode (no dropout). With LoRA or a
    trained backbone, dropout inside the prefix is drawn once for an exercise in ``packed`` mode
    and once for each student in ``row`` mode; without dropout they are equal.

    Args:
        backbone: A Hugging Face decoder without language-modelling head (``AutoModel``), bare or
            inside a peft model.
        num_students: Rows of the students' table.
        start: Where the students' vectors start: [H], the embedding of a real token. From random
            vectors the states at the student token hardly depend on the exercise.
        noise: Standard deviation of what is added to ``start``, in units of its root mean square.
        seed: Of that noise.
        mode: ``row``, ``packed``, ``cached``, or ``auto``: ``cached`` for a frozen backbone and
            otherwise ``packed``. A backbone that does not take a four-dimensional mask, such as
            one with FlashAttention, that counts places in a way of its own (GPT-Neo beyond its
            window), or that is not attention alone (LFM2, Jamba), falls back to ``row`` with a
            warning.
        cache_gib: Most memory for cached prefixes; what does not fit is computed again each time.

    Raises:
        SuiteError: ``mode`` is ``cached`` and the backbone is trained, or ``start`` does not fit;
            when a text is read, that it has more tokens than the backbone has positions.
    """

    def __init__(
        self,
        backbone: Any,
        num_students: int,
        start: Tensor,
        noise: float = 0.1,
        seed: int = 0,
        mode: Mode = "auto",
        cache_gib: float = 4.0,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        self.frozen = not any(p.requires_grad for p in backbone.parameters())
        if mode == "cached" and not self.frozen:
            raise SuiteError(
                "mode=cached: the prefixes of a backbone that is trained change with every step. "
                "Use packed, or freeze the backbone."
            )
        width = backbone.get_input_embeddings().weight.shape[1]
        if start.shape != (width,):
            raise SuiteError(
                f"start has shape {tuple(start.shape)}; the backbone's embeddings have {width} "
                "numbers."
            )
        self.backbone = backbone
        self.mode: Mode = mode if mode != "auto" else "cached" if self.frozen else "packed"
        self.students = nn.Embedding(num_students, width, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        start = start.detach().float().cpu()
        self.start: Tensor
        self.register_buffer("start", start)
        drawn = torch.randn(num_students, width, generator=generator, dtype=torch.float32)
        with torch.no_grad():
            self.students.weight.copy_(start + noise * start.square().mean().sqrt() * drawn)
        self._cache = PrefixCache(int(cache_gib * 2**30))
        self._alike = PrefixCache(2**62)  # two vectors an exercise, as read by `_reader`
        self._reader: Tensor | None = None
        self._checked = (0, 0)  # the longest prefix and row that were tried out
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())  # type: ignore[no-untyped-call]
        self.train(self.training)

    @property
    def width(self) -> int:
        """H, the numbers of a vector."""
        return self.students.embedding_dim

    def forward(self, prefixes: Prefixes, rows: Tensor, students: Tensor) -> Fused:
        """Read N pairs.

        Args:
            prefixes: The exercises.
            rows: The exercise of each pair, as a row of ``prefixes``: int64 [N].
            students: The student of each pair: int64 [N].
        """
        return self.fuse(prefixes, rows, self.students(students))

    def fuse(self, prefixes: Prefixes, rows: Tensor, vectors: Tensor) -> Fused:
        """Read N pairs of an exercise and any vector [N, H], such as that of a new student."""
        check_positions(self.backbone.config, prefixes.input_ids.shape[1])
        if self.mode != "row":
            self._check_packing(prefixes, rows)
        exercise, relative = getattr(self, f"_{self.mode}")(prefixes, rows, vectors)
        return Fused(vectors.float(), exercise.float(), relative.float())

    def read_alike(self, prefixes: Prefixes, vector: Tensor) -> Fused:
        """Read M exercises, each with the same constant ``vector`` [H] at the student token.

        A frozen backbone reads each exercise once; then it costs nothing.
        """
        if not self.frozen:
            return self._fuse_each(prefixes, vector)

        def read(missing: Prefixes) -> list[ReadPrefix]:
            # Not in inference mode, whose tensors could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                fused = self._fuse_each(missing, vector.clone())
                both = torch.stack([fused.exercise, fused.relative], dim=1)
                return [ReadPrefix(state.clone(), []) for state in both]

        if self._reader is None or not torch.equal(self._reader, vector):
            self._alike, self._reader = PrefixCache(self._alike.limit), vector.detach().clone()
        states = torch.stack([p.exercise for p in self._alike.read(prefixes, read)])
        return Fused(vector.float().expand(len(states), -1), states[:, 0], states[:, 1])

    def _fuse_each(self, prefixes: Prefixes, vector: Tensor) -> Fused:
        each = torch.arange(len(prefixes.lengths), device=prefixes.lengths.device)
        return self.fuse(prefixes, each, vector.expand(len(each), -1))

    def exercise_states(self, prefixes: Prefixes) -> Tensor:
        """Return q_v of each exercise, float32 [E, H]."""
        if self.mode == "cached":
            return torch.stack([p.exercise for p in self._cache.read(prefixes, self._read)]).float()
        embedded = self.backbone.get_input_embeddings()(prefixes.input_ids)
        states = self._states(embedded, attention_mask=_inside(prefixes))
        each = torch.arange(len(prefixes.lengths), device=states.device)
        return states[each, prefixes.lengths - 1].float()

    @torch.no_grad()
    def add_students(self, vectors: Tensor) -> None:
        """Append rows [M, H] to the students' table."""
        old = self.students.weight
        whole = torch.cat([old, vectors.to(old)])
        self.students = nn.Embedding.from_pretrained(whole, freeze=not old.requires_grad)

    def train(self, mode: bool = True) -> StudentFusion:
        """Switch dropout, which a frozen backbone never has."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()  # the weights move or change their type
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        self._cache = PrefixCache(self._cache.limit)
        self._alike, self._reader = PrefixCache(self._alike.limit), None

    def _row(self, prefixes: Prefixes, rows: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        lengths = prefixes.lengths[rows]
        embedded = self._embed(prefixes)[rows]
        tokens = torch.cat([embedded, torch.zeros_like(embedded[:, :1])], dim=1)
        each = torch.arange(len(rows), device=rows.device)
        tokens = tokens.index_put((each, lengths), vectors.to(tokens.dtype))
        places = torch.arange(tokens.shape[1], device=rows.device)
        states = self._states(tokens, attention_mask=(places <= lengths[:, None]).long())
        return states[each, lengths - 1], states[each, lengths]

    def _packed(self, prefixes: Prefixes, rows: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        exercises, prefix = prefixes.input_ids.shape
        slots = assign_slots(rows, exercises)
        embedded = self._embed(prefixes)
        tokens = torch.cat(
            [embedded, spread(vectors.to(embedded.dtype), slots, exercises)],
            dim=1,
        )
        seen = packed_mask(prefixes.lengths, prefix, slots.width)
        states = self._states(
            tokens,
            attention_mask=additive(seen, tokens.dtype),
            position_ids=packed_positions(prefixes.lengths, prefix, slots.width),
        )
        return states[rows, prefixes.lengths[rows] - 1], states[rows, prefix + slots.places]

    def _cached(self, prefixes: Prefixes, rows: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        stored = self._cache.read(prefixes, self._read)
        slots, owner = split_wide(assign_slots(rows, len(stored)), _WIDTH)
        tokens = spread(vectors.to(self._dtype), slots, len(owner))
        lengths = prefixes.lengths[owner]
        longest = int(lengths.max())
        seen = packed_mask(lengths, longest, slots.width)[:, longest:]
        states = self._states(
            tokens,
            attention_mask=additive(seen, tokens.dtype),
            position_ids=lengths[:, None].expand(-1, slots.width),
            past_key_values=join_cache([stored[i] for i in owner.tolist()]),
            use_cache=True,
        )
        exercise = torch.stack([p.exercise for p in stored])
        return exercise[rows], states[slots.rows, slots.places]

    # Not in inference mode, whose tensors could not be used in training later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _read(self, prefixes: Prefixes) -> list[ReadPrefix]:
        cache = import_extra("transformers", "llm").DynamicCache()
        states = self._states(
            self._embed(prefixes),
            attention_mask=_inside(prefixes),
            past_key_values=cache,
            use_cache=True,
        )
        return split_cache(cache, states, prefixes.lengths)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.backbone.get_input_embeddings().weight.dtype
        return dtype

    def _embed(self, prefixes: Prefixes) -> Tensor:
        embedded: Tensor = self.backbone.get_input_embeddings()(prefixes.input_ids)
        return embedded

    def _states(self, tokens: Tensor, *, use_cache: bool = False, **inputs: Any) -> Tensor:
        states: Tensor = self.backbone(
            inputs_embeds=tokens, use_cache=use_cache, **inputs
        ).last_hidden_state
        return states

    def _check_packing(self, prefixes: Prefixes, rows: Tensor) -> None:
        """Fall back to ``row`` where the backbone does not obey the mask.

        Tried out once, and again only for a longer prefix or row than any before.
        """
        longest = prefixes.input_ids.shape[1]
        width = int(torch.bincount(rows, minlength=1).max())
        if self.mode == "cached":
            width = min(width, _WIDTH)
        reason = refuse_window(self.backbone.config, longest, width)
        prefix, row = self._checked
        if reason is None and (longest > prefix or longest + width > row):
            self._checked = (max(prefix, longest), max(row, longest + width))
            shared = getattr(self, f"_{self.mode}")
            # what is read without autocast, and half a text, is of no use later
            kept, self._cache = self._cache, PrefixCache(0)
            reason = refuse_mask(self.backbone, self._row, shared, prefixes, width)
            self._cache = kept
        if reason is not None:
            self._fall_back(reason)

    def _fall_back(self, reason: str) -> None:
        warnings.warn(
            f"{type(self.backbone).__name__} cannot share a prefix between students ({reason}): "
            f"mode=row is used instead of mode={self.mode}. It is exact and slow; "
            "attn_implementation: sdpa or eager may help.",
            stacklevel=4,
        )
        self.mode = "row"


def _inside(prefixes: Prefixes) -> Tensor:
    """Return 1 for tokens and 0 for pads: int64 [E, P]."""
    places = torch.arange(prefixes.input_ids.shape[1], device=prefixes.lengths.device)
    return (places < prefixes.lengths[:, None]).long()
