"""A fitted detector for other programs: as a module with its model, as a file, and as a model card."""

from opnp.export.files import OUTPUT_NAMES, exported_program, require_onnx, write_onnx, write_program
from opnp.export.model_card import FalseAlarms, card_text
from opnp.export.module import CompactHead, DetectorModule, FeatureJudge

__all__ = [
    "OUTPUT_NAMES",
    "CompactHead",
    "DetectorModule",
    "FalseAlarms",
    "FeatureJudge",
    "card_text",
    "exported_program",
    "require_onnx",
    "write_onnx",
    "write_program",
]
