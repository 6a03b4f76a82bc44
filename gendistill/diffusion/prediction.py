"""What a denoiser says about x_t; it stands beside the noise schedule, so that schedulers of ours step by it too."""

from gendistill.schedulers import PREDICTION_TYPES, Prediction, from_prediction, to_prediction

__all__ = ["PREDICTION_TYPES", "Prediction", "from_prediction", "to_prediction"]
