"""``opnp fit --model``: the pass of a model over inputs."""

import warnings
from dataclasses import dataclass
from functools import partial

from opnp.cli.held_out import HeldOut
from opnp.cli.model_inputs import Batches, OpenedModel, RunOptions, model_errors, unreadable_of_all
from opnp.cli.output import progress_bar
from opnp.data import InputSet
from opnp.detector import OPNP
from opnp.distributed import Ranks, require_equal, together
from opnp.errors import TuningWarning
from opnp.model import BatchHalving, find_head, inputs_of

__all__ = ["ModelForm"]


@dataclass(frozen=True, slots=True)
class ModelForm:
    """What the form with ``--model`` alone is told.

    Attributes:
        run: The model, the training inputs, and how the one is run on the other.
        head: Dotted name of the head; None to search.
        logits: Where the logits are in the model's output; None where they are usual.

    """

    run: RunOptions
    head: str | None
    logits: int | str | None

    def fit(self, detector: OPNP, ranks: Ranks, *, beside: HeldOut, is_quiet: bool) -> dict[str, object]:
        """Fit the detector with all ranks, and return how many inputs of each set could not be read."""
        with together(ranks):
            opened = self.run.opened()
            training = opened.inputs(self.run.data)
            held_out, outside = beside.opened(ranks, opened.inputs, read_ood=partial(opened.inputs, is_labelled=False))
            if held_out is not None:
                beside.require_enough(len(held_out))
        require_equal(str(len(training)), ranks, what="inputs in number")
        with model_errors(opened.model, self.run.data):
            with together(ranks):
                is_chosen = detector.settings.is_automatic
                train_batches = self._batches(
                    opened, training, ranks.part(len(training)), is_needed=is_chosen and beside.validation is None
                )
                batches = None if held_out is None else self._batches(opened, held_out, None, is_needed=is_chosen)
            detector.fit(
                opened.model,
                train_batches,
                head=self.head,
                logits=self.logits,
                validation=batches,
                validation_ood=None if outside is None else opened.batches(outside),
                keep=beside.keep,
                device=opened.device,
                auto_batch=self.run.auto_batch,
                distributed=not ranks.is_alone,
                progress=progress_bar("fitting", is_quiet=is_quiet),
            )
        sets = {"data": training, "validation": held_out, "val_ood": outside}
        counts = {"data": unreadable_of_all(training, ranks)}
        alone = Ranks()
        counts |= {name: unreadable_of_all(found, alone) for name, found in sets.items() if found and name != "data"}
        return {"unreadable": counts}

    def _batches(
        self, opened: OpenedModel, inputs: InputSet, part: tuple[int, int] | None, *, is_needed: bool
    ) -> Batches:
        """Return batches of a part of the inputs or of all, with labels where these are needed and the model's own."""
        rows = None if part is None else range(*part)
        is_labelled = is_needed and self._is_of_its_classes(opened, inputs)
        return opened.batches(inputs, rows=rows, is_labelled=is_labelled)

    def _is_of_its_classes(self, opened: OpenedModel, inputs: InputSet) -> bool:
        """Return whether labels, if there are any, can be class indices of the model."""
        names = inputs.source.class_names
        if names is None:
            return True
        probe = inputs_of(inputs.first_batch())
        search = partial(find_head, opened.model, head=self.head, logits=self.logits, device=opened.device)
        found, _ = BatchHalving(is_on=self.run.auto_batch).beginning(search, probe)
        classes = len(found.weight)
        if len(names) == classes:
            return True
        warnings.warn(
            f"{inputs.source.path} names {len(names)} classes, and the model has {classes} classes, so that "
            f"the sorted names do not tell which is which: the classes that the model predicts are used instead.",
            TuningWarning,
            stacklevel=2,
        )
        return False
