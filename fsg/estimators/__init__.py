"""Where the gradient of a quantized weight comes from: one file a family, one protocol."""

from fsg.estimators.fast_slow import FSG
from fsg.estimators.protocol import GradientEstimator
from fsg.estimators.straight_through import STE
from fsg.imported import Imported

EstimatorConfig = STE.Config | FSG.Config | Imported

__all__ = ["FSG", "STE", "EstimatorConfig", "GradientEstimator"]
