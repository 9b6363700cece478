"""Other libraries, one a file, behind interfaces of this project. Each is imported only where it is used."""

from opnp.adapters.baselines import (
    BASELINE_NAMES,
    ODIN_EPS,
    ODIN_TEMPERATURE,
    BaselineOutput,
    PytorchOodBaseline,
    odin_scores,
    require_odin,
    require_pytorch_ood,
)
from opnp.adapters.hubs import (
    TimmTransform,
    chosen_preprocessing,
    folder_name,
    model_failure_text,
    model_from_name,
    timm_model,
    torchvision_model,
)
from opnp.adapters.transformers_models import (
    TokenizerTransform,
    TransformersImageTransform,
    named_weights,
    transformers_model,
)

__all__ = [
    "BASELINE_NAMES",
    "ODIN_EPS",
    "ODIN_TEMPERATURE",
    "BaselineOutput",
    "PytorchOodBaseline",
    "TimmTransform",
    "TokenizerTransform",
    "TransformersImageTransform",
    "chosen_preprocessing",
    "folder_name",
    "model_failure_text",
    "model_from_name",
    "named_weights",
    "odin_scores",
    "require_odin",
    "require_pytorch_ood",
    "timm_model",
    "torchvision_model",
    "transformers_model",
]
