"""The smallest study that trains: a few phantom images, two rounds."""

from common.config import Config, replace

PHANTOM = replace(
    Config(),
    experiment={"rounds": 2},
    data={"source": "phantom", "phantom_records": 260},
    model={"name": "scattering_linear"},
    training={"batch_size": 16, "learning_rate": 0.1, "sample_rate": 0.5},
    privacy={"accountant": "rdp", "delta": 1e-3, "target_epsilon": 4.0, "max_grad_norm": 2.8},
    evaluation={"score_bins": 64},
)
