"""Other libraries, one a file, behind interfaces of this project. Each is imported only where it is used."""

from opnp.adapters.pytorch_ood_baselines import BASELINE_NAMES, BaselineOutput, PytorchOodBaseline, require_pytorch_ood

__all__ = ["BASELINE_NAMES", "BaselineOutput", "PytorchOodBaseline", "require_pytorch_ood"]
