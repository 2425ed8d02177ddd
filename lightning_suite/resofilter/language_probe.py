"""Score the samples of a causal language model: the method of ResoFilter."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.batch import Observer
from lightning_suite.resofilter.features import Feature, GradMax
from lightning_suite.resofilter.head_loss import at_least_float32, linear_head_loss
from lightning_suite.resofilter.packing import refuse_packed
from lightning_suite.resofilter.probe import (
    EMPTY,
    NO_LABELS,
    OK,
    TRUNCATED,
    Rows,
    SampleProbe,
    table_rows,
)
from lightning_suite.resofilter.recorder import FeatureRecorder
from lightning_suite.resofilter.targets import Target
from lightning_suite.resofilter.token_batch import TokenBatch, answers_only
from lightning_suite.resofilter.verification import GradientCheck

_LABELS = 8  # label tokens of a sample that is compared with autograd, where there are so many


class CausalLMProbe(SampleProbe):
    """Per-sample features of a Hugging Face causal LM whose weights stay as they are.

    A sample's loss is the mean over its label tokens. Logits are made for label positions only
    and, where the output layer is a plain matrix, some rows at a time.

    Args:
        model: ``…ForCausalLM``, peft or not.
        targets: What to watch.
        features: What to compute.
        without_prompt: Also compute ``loss_without_prompt``, the loss of the answer alone, by one
            more forward pass: instruction-following difficulty needs it.
        allow_low_precision: As in :class:`~lightning_suite.resofilter.probe.SampleProbe`.
        verify: Likewise; the compared sample is run alone.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        features: Sequence[Feature],
        *,
        without_prompt: bool = False,
        allow_low_precision: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__(
            model, targets, features, allow_low_precision=allow_low_precision, verify=verify
        )
        unwrap: Any = getattr(model, "get_base_model", lambda: model)  # peft
        self._base = unwrap()
        config = self._base.config
        # a model of text and images keeps what is said of text apart
        self._config: Any = getattr(config, "get_text_config", lambda: config)()
        self._head: nn.Module = self._base.get_output_embeddings()
        self._takes_positions = "position_ids" in inspect.signature(self._base.forward).parameters
        self._without_prompt = without_prompt
        # None until the first batch shows whether the model's logits are the head's alone
        self._plain_head: bool | None = None if _is_bare_linear(self._head) else False
        self._checked = False
        if any(target.module is self._head for target in targets):
            self._plain_head = False  # its own backward must run

    def score_batch(self, batch: Mapping[str, Any]) -> Rows:
        """Return the table's rows of one batch.

        Args:
            batch: See :meth:`TokenBatch.from_mapping`.

        Raises:
            SuiteError: The batch lacks a key, a sample is longer than the model's context, samples
                are packed that the model would not keep apart, or the rows of a layer do not give
                autograd's gradient of the sample alone.
        """
        self._refuse_autocast()
        tokens = TokenBatch.from_mapping(batch, next(self.model.parameters()).device)
        self._refuse_long(tokens)
        if tokens.packed:
            longest = int(tokens.counts(tokens.segments >= 0).max())
            takes = self._takes_positions
            refuse_packed(self._base, self._config, longest, takes_positions=takes)
        if not self._checked and len(tokens.ids) > 1:
            self._refuse_mixing(tokens)
            self._checked = True
        check = self._differentiate_alone(tokens) if self._to_verify(len(tokens.ids)) else None
        self._start(self.recorder, tokens, None if check is None else check.observe)
        with torch.enable_grad():
            losses = self._losses(tokens, backward=True)
        n_labels = tokens.counts(tokens.predicting)
        # a batch without a label is not run
        features = self.recorder.finish(name_idle=bool(n_labels.any()))
        self._conclude(check, len(tokens.ids))
        status = [
            NO_LABELS if not labels else EMPTY if empty else TRUNCATED if cut else OK
            for labels, empty, cut in zip(
                n_labels.tolist(), tokens.empty, tokens.truncated, strict=True
            )
        ]
        labelled = n_labels.cpu() > 0
        features = {name: _only_where(labelled, values) for name, values in features.items()}
        more = {"perplexity": losses.double().exp()}
        if self._without_prompt:
            with torch.no_grad():
                more["loss_without_prompt"] = self._losses(
                    answers_only(tokens, self._config.bos_token_id), backward=False
                ).double()
        rows = table_rows(tokens.ids, losses, status, features)
        counts = {
            "n_tokens": tokens.counts(tokens.segments >= 0).tolist(),
            "n_label_tokens": n_labels.tolist(),
        }
        first = {name: rows.pop(name) for name in ("sample_id", "status", "loss")}
        return {**first, **{n: v.cpu() for n, v in more.items()}, **counts, **rows}

    def _start(
        self, recorder: FeatureRecorder, tokens: TokenBatch, observer: Observer | None = None
    ) -> None:
        recorder.start(
            len(tokens.ids),
            tokens.segments,
            segments_of={self._head: tokens.segments[tokens.predicting]},
            observer=observer,
        )

    def _differentiate_alone(self, tokens: TokenBatch) -> GradientCheck | None:
        """Return autograd's gradients of the shortest sample with labels enough; None without."""
        labels = tokens.counts(tokens.predicting)
        enough = labels >= labels.max().clamp(1, _LABELS)
        if not bool(enough.any()):
            return None
        lengths = tokens.counts(tokens.segments >= 0).double()
        shortest = int(lengths.where(enough, torch.inf).argmin())
        check = GradientCheck(self.recorder.targets, shortest)
        with isolate_rng(), check.trainable(), torch.enable_grad():
            self._losses(tokens.alone(shortest), backward=True)
        return check

    def _refuse_mixing(self, tokens: TokenBatch) -> None:
        """Check on two samples of three tokens that the loss of one leaves the other's rows alone.

        A layer that works on [T, B] where the batch is [B, T], or in which samples see each
        other, cannot be told by its shape; where it is flattened, not even in any other batch.

        Raises:
            SuiteError: A watched layer has gradients in rows of the other sample.
        """
        ids = tokens.input_ids.flatten()[:6].repeat(6)[:6].view(2, 3)
        own = torch.arange(2, device=ids.device)[:, None].expand(2, 3)
        pair = TokenBatch(["0", "1"], ids, ids, own, [False] * 2, [False] * 2)
        for n in range(2):
            only = torch.zeros(2, dtype=torch.float64, device=ids.device)
            only[n] = 1
            with FeatureRecorder(self.recorder.targets, [GradMax()]) as recorder:
                self._start(recorder, pair)
                with torch.enable_grad():
                    self._losses(pair, backward=True, factors=only)
                found = recorder.finish(name_idle=False)
            for target in recorder.targets:
                other = found[f"{target.name}.grad_max"][1 - n]
                if other.isfinite() and other != 0:
                    raise SuiteError(
                        f"{target.name}: cannot tell the samples apart: the loss of one sample has "
                        "a gradient in the rows of another. The model mixes the samples of a "
                        "batch, or the layer does not see them in the batch's order. Leave this "
                        "layer out of the watched modules, or score with batch_samples: 1."
                    )

    def _losses(
        self, tokens: TokenBatch, *, backward: bool, factors: Tensor | None = None
    ) -> Tensor:
        """Return each sample's loss [N]; with ``backward`` differentiate their sum, too.

        ``factors`` [N] makes that a weighted sum.
        """
        where = tokens.predicting
        owners = tokens.segments[where]
        counts = tokens.counts(where)
        weights = (1 / counts.double() if factors is None else factors / counts)[owners]
        labels = tokens.labels.roll(-1, 1)[where]
        if len(owners) == 0:
            return counts.new_full(counts.shape, torch.nan, dtype=torch.float64)
        if self._plain_head is None:
            self._plain_head = self._is_head_plain(tokens)
        hidden, logits = self._run(tokens, where, whole_head=not self._plain_head)
        if self._plain_head:
            nll, gradient = linear_head_loss(hidden, self._head, labels, weights)
            start, seed = hidden, gradient
        else:
            nll = F.cross_entropy(at_least_float32(logits), labels, reduction="none")
            start, seed = nll, weights.to(nll)
        if backward and start.requires_grad:
            torch.autograd.backward(start, seed)
        sums = torch.zeros(counts.shape, dtype=torch.float64, device=nll.device)
        return sums.index_add_(0, owners, nll.detach().double()) / counts

    def _run(self, tokens: TokenBatch, where: Tensor, *, whole_head: bool) -> tuple[Tensor, Tensor]:
        """Run the model; return the head's inputs at ``where`` [R, H] and the model's logits.

        The logits are those of ``where`` [R, V], or of one row: then the head is still to be run.
        """
        caught: list[Tensor] = []

        def replace_input(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            rows = args[0][where]
            caught.append(rows)
            return (rows[None] if whole_head else rows[None, :1].detach(), *args[1:])

        handle = self._head.register_forward_pre_hook(replace_input)
        try:
            inputs: dict[str, Any] = {
                "input_ids": tokens.input_ids,
                "attention_mask": tokens.attention_mask(next(self.model.parameters()).dtype),
            }
            if self._takes_positions:
                inputs["position_ids"] = tokens.position_ids
            logits = self.model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
        return caught[0], logits[0]

    @torch.no_grad()
    def _is_head_plain(self, tokens: TokenBatch) -> bool:
        """Return whether the model does nothing to the head's output (scaling, soft-capping)."""
        ids = tokens.input_ids[:1, :2]
        few = TokenBatch(tokens.ids[:1], ids, ids, torch.zeros_like(ids), [False], [False])
        hidden, logits = self._run(few, torch.ones_like(ids, dtype=torch.bool), whole_head=True)
        return torch.equal(self._head(hidden), logits)

    def _refuse_long(self, tokens: TokenBatch) -> None:
        limit = getattr(self._config, "max_position_embeddings", None)
        lengths = tokens.counts(tokens.segments >= 0)
        if limit is not None and int(lengths.max()) > limit:
            worst = int(lengths.argmax())
            raise SuiteError(
                f"probe: sample {tokens.ids[worst]!r} has {int(lengths[worst])} tokens, the "
                f"model's context is {limit}. Truncate to {limit} tokens or fewer."
            )


def probe_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    targets: Sequence[Target],
    features: Sequence[Feature],
    **options: bool,
) -> Iterator[Rows]:
    """Yield the table's rows of every batch, see :class:`CausalLMProbe`.

    The model is frozen and in evaluation mode until the iterator is used up or closed.
    """
    with CausalLMProbe(model, targets, features, **options) as probe:
        for batch in batches:
            yield probe.score_batch(batch)


def _is_bare_linear(head: nn.Module) -> bool:
    return type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks)


def _only_where(keep: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` [N] or [N, k] with NaN where ``keep`` [N] is false."""
    keep = keep if values.ndim == 1 else keep[:, None]
    return values.where(keep, torch.nan)
