"""Where the gradient of a quantized weight comes from: one file a family, one protocol."""

from fsg.estimators.fast_slow import FSG
from fsg.estimators.full_precision import FullPrecision
from fsg.estimators.metaquant import LSTMFC, FCGrad, MultiFC
from fsg.estimators.protocol import GradientEstimator
from fsg.estimators.straight_through import EDE, STE, ReSTE
from fsg.imported import Imported

EstimatorConfig = (
    STE.Config
    | EDE.Config
    | ReSTE.Config
    | MultiFC.Config
    | FCGrad.Config
    | LSTMFC.Config
    | FSG.Config
    | FullPrecision.Config
    | Imported
)

__all__ = [
    "EDE",
    "FSG",
    "LSTMFC",
    "STE",
    "EstimatorConfig",
    "FCGrad",
    "FullPrecision",
    "GradientEstimator",
    "MultiFC",
    "ReSTE",
]
