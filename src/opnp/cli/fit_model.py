"""``opnp fit --model``: the pass of a model over inputs."""

from dataclasses import dataclass

from opnp.cli.held_out import HeldOut
from opnp.cli.model_inputs import RunOptions, model_errors, unreadable_of_all
from opnp.cli.output import progress_bar
from opnp.detector import OPNP
from opnp.distributed import Ranks, require_equal, together

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
            held_out = beside.opened(ranks, opened.inputs)
            if held_out is not None:
                beside.require_enough(len(held_out))
        require_equal(str(len(training)), ranks, what="inputs in number")
        with model_errors(opened.model, self.run.data):
            rows = range(*ranks.part(len(training)))
            batches = opened.batches(training, rows=rows, is_labelled=False)
            known = None if held_out is None else opened.batches(held_out, is_labelled=False)
            detector.fit(
                opened.model,
                batches,
                head=self.head,
                logits=self.logits,
                validation=known,
                keep=beside.keep,
                device=opened.device,
                auto_batch=self.run.auto_batch,
                distributed=not ranks.is_alone,
                progress=progress_bar("fitting", is_quiet=is_quiet),
            )
        counts = {"data": unreadable_of_all(training, ranks)}
        if held_out is not None:
            counts["validation"] = unreadable_of_all(held_out, Ranks())
        return {"unreadable": counts}
