"""Every detector, adapter and exported module that the contract is held against."""

from collections.abc import Mapping

from tests.contract import fit_checks, owner_checks, score_checks  # noqa: F401  # enter their checks in the table
from tests.contract.adapter_shells import (
    BaselineShell,
    OdinShell,
    OpenOodShell,
    PytorchOodFeatureShell,
    PytorchOodShell,
)
from tests.contract.checking import CHECKS
from tests.contract.export_shells import JudgeShell, ModuleShell, OnnxShell, ProgramShell
from tests.contract.library_shells import FeatureWay, HeadShell, InputWay, LoadedWay, PlainHeadShell
from tests.contract.scikit_learn_shells import FrozenShell, PipelineShell, ScikitLearnShell
from tests.contract.shell import Shell
from tests.contract.surface_shells import CommandShell, ModelCommandShell, ServiceShell

__all__ = ["NO_DETECTORS", "PAIRS", "SUBJECTS"]

SUBJECTS: Mapping[str, type[Shell]] = {
    "inputs": InputWay,
    "features": FeatureWay,
    "loaded": LoadedWay,
    "compact_head": HeadShell,
    "pruned_head": PlainHeadShell,
    "pytorch_ood": PytorchOodShell,
    "pytorch_ood_features": PytorchOodFeatureShell,
    "openood": OpenOodShell,
    "scikit_learn": ScikitLearnShell,
    "scikit_learn_frozen": FrozenShell,
    "scikit_learn_pipeline": PipelineShell,
    "baseline": BaselineShell,
    "odin": OdinShell,
    "module": ModuleShell,
    "feature_judge": JudgeShell,
    "program": ProgramShell,
    "onnx": OnnxShell,
    "service": ServiceShell,
    "command": CommandShell,
    "command_on_images": ModelCommandShell,
}

NO_DETECTORS: Mapping[str, str] = {
    "opnp.adapters.BASELINE_NAMES": "names",
    "opnp.adapters.ODIN_EPS": "a number",
    "opnp.adapters.ODIN_TEMPERATURE": "a number",
    "opnp.adapters.TimmTransform": "makes inputs",
    "opnp.adapters.TokenizerTransform": "makes inputs",
    "opnp.adapters.TransformersImageTransform": "makes inputs",
    "opnp.adapters.named_weights": "reads weights",
    "opnp.adapters.require_odin": "looks what is installed",
    "opnp.adapters.require_pytorch_ood": "looks what is installed",
    "opnp.adapters.timm_model": "opens models",
    "opnp.adapters.torchvision_model": "opens models",
    "opnp.adapters.transformers_model": "opens models",
    "opnp.adapters.detector_bytes.bytes_of": "writes a detector, which the adapters' copies are made of",
    "opnp.adapters.detector_bytes.detector_from": "reads a detector, which the adapters' copies are made of",
    "opnp.adapters.encoded_classifier.EncodedClassifier": "the model inside two adapters, under which it is tested",
    "opnp.adapters.encoded_classifier.encoded": "gives features",
    "opnp.adapters.encoded_classifier.owner_of": "finds a module",
    "opnp.adapters.onnx_files.require_onnx": "looks what is installed",
    "opnp.adapters.openood.CONFIG_FILE": "a path",
    "opnp.adapters.pruning_options.OPTION_DEFAULTS": "options",
    "opnp.adapters.pruning_options.RATIO_NAMES": "names",
    "opnp.adapters.pruning_options.blank_pass": "reads options",
    "opnp.adapters.pruning_options.checked_names": "reads options",
    "opnp.adapters.pruning_options.opnp_of": "makes an unfitted `OPNP`",
    "opnp.adapters.pruning_options.reset": "gives an `OPNP` other ratios",
    "opnp.adapters.pruning_options.settings_of": "reads options",
    "opnp.adapters.pytorch_ood.EncoderMissingError": "an error",
    "opnp.adapters.pytorch_ood.FitMissingError": "an error",
    "opnp.adapters.scikit_learn_classifiers.FeatureRows": "features",
    "opnp.adapters.scikit_learn_classifiers.class_indices": "reads labels",
    "opnp.adapters.scikit_learn_classifiers.classifier_features": "gives features",
    "opnp.adapters.scikit_learn_classifiers.last_step": "finds a classifier",
    "opnp.adapters.scikit_learn_classifiers.linear_head": "reads coefficients",
    "opnp.adapters.scikit_learn_classifiers.require_linear": "checks a classifier",
}
"""Public names of the adapters that answer nothing about inputs, and what they do instead."""

PAIRS: tuple[tuple[str, str], ...] = tuple(
    (subject, name)
    for subject, kind in SUBJECTS.items()
    for name, found in CHECKS.items()
    if not found.needs & set(kind.lacks)
)
"""Which subject is put to which check: all that need nothing the subject lacks."""
