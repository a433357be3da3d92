"""What server and hospitals derive from a run description is what the description says."""

from common.config import Config, RunDescription, replace
from common.run_terms import protocol_parameters
from common.secagg.parameters import Adversary


def test_the_protocol_gets_ring_adversary_and_graph_from_the_description() -> None:
    config = replace(
        Config(), aggregation={"adversary": "semi-honest", "modulus_bits": 32}, graph={"dropping_out": 0.2}
    )
    run = RunDescription(
        run_id="ab" * 16,
        classes=("normal", "pneumonia"),
        channels=1,
        vector_length=100,
        roster={},
        experiment=config.experiment,
        model=config.model,
        training=config.training,
        aggregation=config.aggregation,
        graph=config.graph,
        privacy=config.privacy,
        evaluation=config.evaluation,
    )
    keys = {f"hospital-{number}": bytes([number]) * 32 for number in range(1, 5)}
    parameters = protocol_parameters(run, keys, 4)
    assert (parameters.adversary, parameters.modulus_bits) == (Adversary.SEMI_HONEST, 32)
    assert parameters.graph.dropping_out == 0.2
    assert parameters.config_hash == run.hash()
    assert (dict(parameters.roster), parameters.min_hospitals) == (keys, 4)
