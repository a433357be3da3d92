"""Differential privacy: accounting, calibration and discrete noise."""
