"""Every detector, adapter and exported module that the contract is held against."""

from collections.abc import Mapping

from tests.contract import fit_checks, owner_checks, score_checks  # noqa: F401  # enter their checks in the table
from tests.contract.adapter_shells import (
    BaselineShell,
    FusedOpenOodShell,
    FusedPytorchOodFeatureShell,
    FusedPytorchOodShell,
    OdinShell,
    OpenOodShell,
    PytorchOodFeatureShell,
    PytorchOodShell,
)
from tests.contract.checking import CHECKS
from tests.contract.export_shells import (
    FusedJudgeShell,
    FusedModuleShell,
    FusedOnnxShell,
    FusedProgramShell,
    JudgeShell,
    ModuleShell,
    OnnxShell,
    ProgramShell,
)
from tests.contract.library_shells import (
    FeatureWay,
    FusedFeatureWay,
    FusedInputWay,
    FusedLoadedWay,
    HeadShell,
    InputWay,
    LoadedWay,
    PlainHeadShell,
)
from tests.contract.scikit_learn_shells import (
    FrozenShell,
    FusedFrozenShell,
    FusedPipelineShell,
    FusedScikitLearnShell,
    PipelineShell,
    ScikitLearnShell,
)
from tests.contract.shell import Shell
from tests.contract.surface_shells import (
    CommandShell,
    FusedCommandShell,
    FusedServiceShell,
    ModelCommandShell,
    ServiceShell,
)

__all__ = ["NO_DETECTORS", "PAIRS", "SUBJECTS"]

SUBJECTS: Mapping[str, type[Shell]] = {
    "inputs": InputWay,
    "fused_inputs": FusedInputWay,
    "features": FeatureWay,
    "fused_features": FusedFeatureWay,
    "loaded": LoadedWay,
    "fused_loaded": FusedLoadedWay,
    "compact_head": HeadShell,
    "pruned_head": PlainHeadShell,
    "pytorch_ood": PytorchOodShell,
    "fused_pytorch_ood": FusedPytorchOodShell,
    "pytorch_ood_features": PytorchOodFeatureShell,
    "fused_pytorch_ood_features": FusedPytorchOodFeatureShell,
    "openood": OpenOodShell,
    "fused_openood": FusedOpenOodShell,
    "scikit_learn": ScikitLearnShell,
    "fused_scikit_learn": FusedScikitLearnShell,
    "scikit_learn_frozen": FrozenShell,
    "fused_scikit_learn_frozen": FusedFrozenShell,
    "scikit_learn_pipeline": PipelineShell,
    "fused_scikit_learn_pipeline": FusedPipelineShell,
    "baseline": BaselineShell,
    "odin": OdinShell,
    "module": ModuleShell,
    "fused_module": FusedModuleShell,
    "feature_judge": JudgeShell,
    "fused_feature_judge": FusedJudgeShell,
    "program": ProgramShell,
    "fused_program": FusedProgramShell,
    "onnx": OnnxShell,
    "fused_onnx": FusedOnnxShell,
    "service": ServiceShell,
    "fused_service": FusedServiceShell,
    "command": CommandShell,
    "fused_command": FusedCommandShell,
    "command_on_images": ModelCommandShell,
}

NO_DETECTORS: Mapping[str, str] = {
    "opnp.adapters.BASELINE_NAMES": "names",
    "opnp.adapters.ODIN_EPS": "a number",
    "opnp.adapters.ODIN_TEMPERATURE": "a number",
    "opnp.adapters.TimmTransform": "makes inputs",
    "opnp.adapters.TokenizerTransform": "makes inputs",
    "opnp.adapters.TransformersImageTransform": "makes inputs",
    "opnp.adapters.chosen_preprocessing": "makes inputs",
    "opnp.adapters.folder_name": "names a folder",
    "opnp.adapters.model_failure_text": "says what failed",
    "opnp.adapters.model_from_name": "opens models",
    "opnp.adapters.named_weights": "reads weights",
    "opnp.adapters.require_odin": "looks what is installed",
    "opnp.adapters.require_pytorch_ood": "looks what is installed",
    "opnp.adapters.timm_model": "opens models",
    "opnp.adapters.torchvision_model": "opens models",
    "opnp.adapters.transformers_model": "opens models",
    "opnp.adapters.toolkits.bytes_of": "writes a detector, which the adapters' copies are made of",
    "opnp.adapters.toolkits.detector_from": "reads a detector, which the adapters' copies are made of",
    "opnp.adapters.toolkits.EncodedClassifier": "the model inside two adapters, under which it is tested",
    "opnp.adapters.toolkits.encoded": "gives features",
    "opnp.adapters.toolkits.owner_of": "finds a module",
    "opnp.adapters.openood.CONFIG_FILE": "a path",
    "opnp.adapters.toolkits.OPTION_DEFAULTS": "options",
    "opnp.adapters.toolkits.RATIO_NAMES": "names",
    "opnp.adapters.toolkits.blank_pass": "reads options",
    "opnp.adapters.toolkits.checked_names": "reads options",
    "opnp.adapters.toolkits.reset": "gives an `OPNP` other ratios",
    "opnp.adapters.toolkits.settings_of": "reads options",
    "opnp.adapters.pytorch_ood.EncoderMissingError": "an error",
    "opnp.adapters.pytorch_ood.FitMissingError": "an error",
}
"""Public names of the adapters that answer nothing about inputs, and what they do instead."""

PAIRS: tuple[tuple[str, str], ...] = tuple(
    (subject, name)
    for subject, kind in SUBJECTS.items()
    for name, found in CHECKS.items()
    if not found.needs & set(kind.lacks)
)
"""Which subject is put to which check: all that need nothing the subject lacks."""
