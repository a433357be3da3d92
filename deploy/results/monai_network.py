"""Runs a Confide model inside MONAI: this file is copied into a bundle, and needs torch and onnxruntime alone."""

import numpy as np
import onnxruntime
import torch


class OnnxNetwork(torch.nn.Module):
    """Pictures, (n, channels, height, width) with values 0 to 255, to probabilities, float32 (n, classes).

    Args:
        path: of model.onnx, which prepares pictures of any size itself.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, on the picture's device."""
        pixels = image.detach().cpu().round().clamp(0, 255).to(torch.uint8).numpy()
        (probabilities,) = self.session.run(["probabilities"], {"image": np.ascontiguousarray(pixels)})
        return torch.from_numpy(probabilities).to(image.device)
