"""Step 2 of the method for a fitted head: which weights and neurons stay under settings."""

from torch import Tensor

from opnp.core.masks import neuron_mask, weight_mask
from opnp.core.underflow import require_known_neurons, require_known_weights
from opnp.detector.fitting import Fitted
from opnp.detector.settings import Settings

__all__ = ["neurons_kept", "require_known_order", "weights_kept"]


def weights_kept(fitted: Fitted, settings: Settings) -> Tensor:
    """Return the mask of the weights, shape ``(classes, features)``, under resolved settings.

    Raises:
        RatioError: If the ratios leave no weight.

    Warns:
        RatioWarning: If a ratio above 0 removes no weight.

    """
    ratios, sensitivity = settings.fixed_ratios, fitted.sensitivity
    return weight_mask(sensitivity.weight, lowest=ratios.w_min, highest=ratios.w_max, scope=settings.scope)


def neurons_kept(fitted: Fitted, settings: Settings) -> Tensor:
    """Return the mask of the neurons, shape ``(features,)``, under resolved settings.

    Raises:
        RatioError: If the ratios leave no neuron.

    Warns:
        RatioWarning: If a ratio above 0 removes no neuron.

    """
    ratios, sensitivity = settings.fixed_ratios, fitted.sensitivity
    return neuron_mask(sensitivity.neuron(settings.neuron), lowest=ratios.o_min, highest=ratios.o_max)


def require_known_order(fitted: Fitted, settings: Settings) -> None:
    """Raise `RatioError` if resolved settings cut among sensitivities whose order was lost.

    Raises:
        RatioError: If they do.

    """
    ratios, sensitivity = settings.fixed_ratios, fitted.sensitivity
    require_known_weights(
        sensitivity,
        lowest=ratios.w_min,
        highest=ratios.w_max,
        scope=settings.scope,
        temperature=settings.temperature,
    )
    if settings.neuron == "gradient":
        require_known_neurons(
            sensitivity,
            fitted.weight,
            lowest=ratios.o_min,
            highest=ratios.o_max,
            temperature=settings.temperature,
        )
