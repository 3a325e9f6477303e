"""Where the gradient of a quantized weight comes from: one file a family, one protocol."""

from fsg.estimators.fast_slow import FSG
from fsg.estimators.metaquant import LSTMFC, FCGrad, MultiFC
from fsg.estimators.protocol import GradientEstimator
from fsg.estimators.straight_through import STE
from fsg.imported import Imported

EstimatorConfig = STE.Config | FSG.Config | MultiFC.Config | FCGrad.Config | LSTMFC.Config | Imported

__all__ = ["FSG", "LSTMFC", "STE", "EstimatorConfig", "FCGrad", "GradientEstimator", "MultiFC"]
