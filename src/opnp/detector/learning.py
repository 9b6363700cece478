"""One fit, step by step: the pass over the training data, what is held out, and the state that comes of it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from opnp.data import FeatureSource
from opnp.detector.blocks import FeatureBlocks, feature_blocks
from opnp.detector.checkpoint import Checkpoint, Progressed, read_checkpoint, require_like, write_checkpoint
from opnp.detector.choosing import TUNING_SAMPLES, TUNING_SEED, chosen, react_quantiles, tuning_reservoir
from opnp.detector.fitting import FitSum, Fitted, checked_head, fit_sum
from opnp.detector.link import ModelLink, head_digest
from opnp.detector.outcome import Outcome
from opnp.detector.progress import Progress, shown
from opnp.detector.reservoir import Reservoir
from opnp.detector.scoring import Scorer
from opnp.detector.settings import Settings
from opnp.detector.state import State
from opnp.distributed import Ranks, gathered, require_equal, sent_by_first, summed, together
from opnp.errors import CheckpointError, NotFittedError

__all__ = ["Learning"]

_RESERVOIR = "reservoir."


class Learning:
    """Collects what a fit needs, in the order it arrives; a detector takes the outcome as a whole or not at all.

    Of several ranks each goes through its own part of the training data (`take` or `take_features`), and `join` adds
    up. Rank 0 alone decides by held-out samples, and `agreed` gives its decision to all.

    Args:
        settings: The settings as given.
        is_held_out: Whether held-out ID samples will come; without them, training samples serve to choose by. Of
            several ranks the first has the say.
        ranks: This process's place among those that fit together.

    Raises:
        DistributedError: If ranks have different settings.

    """

    def __init__(self, settings: Settings, *, is_held_out: bool, ranks: Ranks | None = None) -> None:
        """Start with nothing seen; ranks make sure that they are about to do the same."""
        self.ranks = ranks or Ranks()
        require_equal(str(settings.to_json()), self.ranks, what="the settings")
        self._settings = settings
        self._is_held_out = sent_by_first(b"held out" if is_held_out else b"none", self.ranks) == b"held out"
        self._quantiles = react_quantiles(settings)
        self._reservoir = tuning_reservoir(rank=self.ranks.rank)
        self._head: tuple[Tensor, Tensor | None] | None = None
        self._sum: FitSum | None = None
        self._fitted: Fitted | None = None
        self._held_out: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._ood: list[Tensor] = []

    def take(
        self, batches: Iterable[tuple[Tensor, Tensor | None, Tensor | None]], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Go once through (features, logits or None, labels or None), and return copies of weight and bias."""

        def pairs() -> Iterator[tuple[Tensor, Tensor | None]]:
            for features, logits, labels in batches:
                if self._needs_samples:
                    self._reservoir.show(features, labels)
                yield features, logits

        self._head = weight.detach().clone(), None if bias is None else bias.detach().clone()
        self._sum = self._summed(pairs())
        return self._head

    def take_features(
        self,
        features: Tensor | FeatureSource,
        *,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor | None,
        size: int,
        checkpoint: Checkpoint | None,
        progress: Progress,
    ) -> Tensor:
        """Go once through cached features in blocks of rows, or on from a checkpoint; return a copy of the weight.

        Every block is summed by itself and then added, so that a pass that was interrupted between two blocks comes to
        the same bits as one that was not.
        """
        ranks = self.ranks
        with together(ranks):
            weight, bias = checked_head(weight, bias)
            self._head = weight, bias = weight.detach().clone(), None if bias is None else bias.detach().clone()
            blocks = feature_blocks(features, weight, labels=labels, size=size, is_part=not ranks.is_alone)
        rows = gathered(torch.tensor([blocks.source.rows]), ranks)
        self._reservoir = tuning_reservoir()
        self._reservoir.skip(sum(int(count) for count in rows[: ranks.rank]))
        with together(ranks):
            self._sum = self._through(blocks, checkpoint, progress)
        return weight

    def join(self) -> Fitted:
        """Add up over all ranks, and return what comes of it."""
        if self._sum is None or self._head is None:
            raise NotFittedError("Nothing was taken: `take` comes first.")
        weight, bias = self._head
        if not self.ranks.is_alone:
            require_equal(head_digest(weight, bias)[:12], self.ranks, what="a head with digest")
            self._sum = FitSum.from_tensors(summed(self._sum.to_tensors(), self.ranks))
            if self._needs_samples:
                self._reservoir = _joined(self._reservoir, self.ranks)
        self._fitted = self._sum.fitted(weight, bias, react_quantiles=self._quantiles)
        return self._fitted

    def hold_out(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Keep the features of held-out ID samples, to choose by; where nothing is to be chosen, only their scores."""
        if self._settings.is_automatic:
            for features, labels in batches:
                self._reservoir.show(features, labels)
                self._held_out.append(features.clone())  # a loader may use its buffer again
        else:
            scorer = Scorer.from_fitted(self._required(), self._settings.resolved())
            self._scores += (scorer.scores(features) for features, _ in batches)

    def hold_out_ood(self, batches: Iterable[Tensor]) -> None:
        """Keep the features of OOD samples to choose by."""
        self._ood += (features.clone() for features in batches)  # as above

    def state(self, link: ModelLink | None, *, keep: float) -> State:
        """Return the fitted state, chosen and calibrated as far as there was something to do it by."""
        fitted, settings, tuning = self._required(), self._settings.resolved(), None
        if self._settings.is_automatic:
            ood = torch.cat(self._ood) if self._ood else None
            settings, tuning = chosen(fitted, self._settings, self._reservoir, is_held_out=self._is_held_out, ood=ood)
        scorer = Scorer.from_fitted(fitted, settings)
        origin = (None, None) if link is None else (link.head.name, link.axes)
        state = State(fitted, scorer, link, tuning=tuning, head_name=origin[0], axes=origin[1])
        if not self._is_held_out:
            return state
        scores = self._scores or [scorer.scores(features) for features in self._held_out]
        return state.calibrated(scores, keep=keep)

    def agreed(self, state: State | None, link: ModelLink | None) -> State:
        """Return the state of rank 0 on every rank; that of the others is not looked at."""
        mine = b""
        if state is not None:
            if self.ranks.is_alone:
                return state
            mine = Outcome(state.scorer.settings, state.tuning, state.calibration).to_bytes()
        sent = sent_by_first(mine, self.ranks)
        if state is not None:
            return state
        fitted, outcome = self._required(), Outcome.from_bytes(sent)
        return State(
            fitted=fitted,
            scorer=Scorer.from_fitted(fitted, outcome.settings),
            link=link,
            calibration=outcome.calibration,
            tuning=outcome.tuning,
            head_name=None if link is None else link.head.name,
            axes=None if link is None else link.axes,
        )

    @property
    def _needs_samples(self) -> bool:
        return self._settings.is_automatic and not self._is_held_out

    def _summed(self, pairs: Iterable[tuple[Tensor, Tensor | None]]) -> FitSum:
        weight, bias = self._given_head()
        return fit_sum(pairs, weight=weight, bias=bias, settings=self._settings, is_counting=bool(self._quantiles))

    def _through(self, blocks: FeatureBlocks, checkpoint: Checkpoint | None, progress: Progress) -> FitSum:
        total = FitSum.zeros(blocks.weight, is_counting=bool(self._quantiles))
        run = {} if checkpoint is None else self._run(blocks)
        found = None if checkpoint is None else read_checkpoint(checkpoint, self.ranks, run=run)
        if found is not None and checkpoint is not None:
            total = self._resumed(found, total, blocks, path=checkpoint.file(self.ranks))
        done = 0 if found is None else found.blocks
        for rows, labels in shown(blocks.after(done), progress):
            if self._needs_samples:
                self._reservoir.show(rows, labels)
            total = total.absorbed(self._summed([(rows, None)]))
            done += 1
            if checkpoint is not None and done % checkpoint.every == 0:
                tensors = total.to_tensors()
                if self._needs_samples:
                    tensors |= {_RESERVOIR + name: tensor for name, tensor in self._reservoir.to_tensors().items()}
                write_checkpoint(checkpoint, self.ranks, run=run, state=Progressed(done, tensors))
        return total

    def _run(self, blocks: FeatureBlocks) -> dict[str, object]:
        """Return what makes this pass the same as another, by name, as JSON values."""
        source = blocks.source
        return {
            "batch size": blocks.size,
            "data": source.digest(),
            "device": blocks.weight.device.type,
            "head": head_digest(*self._given_head()),
            "held-out samples": self._is_held_out,
            "rank": self.ranks.rank,
            "ranks": self.ranks.world,
            "rows": [source.first_row, source.first_row + source.rows],
            "seed": TUNING_SEED,
            "settings": self._settings.to_json(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _resumed(self, found: Progressed, zeros: FitSum, blocks: FeatureBlocks, *, path: Path) -> FitSum:
        """Take over the sums and the samples of a checkpoint."""
        kept = {name.removeprefix(_RESERVOIR): found.tensors[name] for name in found.tensors if _RESERVOIR in name}
        sums = {name: tensor for name, tensor in found.tensors.items() if _RESERVOIR not in name}
        require_like(sums, zeros.to_tensors(), path=path)
        if found.blocks > len(blocks) or int(sums["count"]) < 1:
            raise CheckpointError(f"{path} speaks of more data than there are. Remove it to start over.")
        device = blocks.weight.device
        if self._needs_samples:
            try:
                width = blocks.weight.shape[1]
                self._reservoir = Reservoir.from_tensors(kept, size=TUNING_SAMPLES, width=width, device=device)
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path} holds no samples of this run. Remove it to start over.") from error
        return FitSum.from_tensors({name: tensor.to(device, copy=True) for name, tensor in sums.items()})

    def _given_head(self) -> tuple[Tensor, Tensor | None]:
        if self._head is None:
            raise NotFittedError("Nothing was taken: `take` comes first.")
        return self._head

    def _required(self) -> Fitted:
        if self._fitted is None:
            raise NotFittedError("Nothing was fitted: `join` comes first.")
        return self._fitted


def _joined(reservoir: Reservoir, ranks: Ranks) -> Reservoir:
    """Return one reservoir of what those of all ranks hold, the same on every rank."""
    tensors = reservoir.to_tensors()
    parts: list[dict[str, Tensor]] = [{} for _ in range(ranks.world)]
    for name in ("features", "generator", "is_labelled", "keys", "labels"):
        for part, tensor in zip(parts, gathered(tensors.get(name, torch.empty(0)), ranks), strict=True):
            if name in {"generator", "is_labelled", "keys"} or len(tensor):
                part[name] = tensor
    return Reservoir.merged(parts, size=TUNING_SAMPLES)
