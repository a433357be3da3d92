"""What the peers of ``bench peers`` run: one model of zeros, training that adds one, and a note of when rounds begin.

These programs run in the peers' own environments, so they are text here and import nothing of ours. Whatever a peer
does by itself (evaluation, tracking, a server's checkpoint of each round) is left as its defaults have it, but for
evaluation, which Confide does not do in this benchmark either.
"""

FLOWER_PROJECT = """[project]
name = "peer"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "peer.app:server"
clientapp = "peer.app:client"
[tool.flwr.app.config]
rounds = 1
parameters = 1
hospitals = 1
times = ""
"""

FLOWER_APP = """import time
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    (array,) = message.content["arrays"].to_numpy_ndarrays()
    content = {"arrays": ArrayRecord([array + np.float32(1)]), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)

@server.main()
def main(grid, context):
    asked = context.run_config

    class Noted(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            with open(asked["times"], "a") as file:
                print(time.time(), file=file)
            return super().configure_train(server_round, arrays, config, grid)

    everyone = asked["hospitals"]
    strategy = Noted(fraction_evaluate=0.0, min_train_nodes=everyone, min_available_nodes=everyone)
    strategy.start(grid, ArrayRecord([np.zeros(asked["parameters"], np.float32)]), num_rounds=asked["rounds"])
    with open(asked["times"], "a") as file:
        print(time.time(), file=file)
"""

FLOWER_SECAGG_APP = """import time
import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp

class Trivial(NumPyClient):
    def fit(self, parameters, config):
        return [parameters[0] + np.float32(1)], 1, {}

client = ClientApp(client_fn=lambda context: Trivial().to_client(), mods=[secaggplus_mod])
server = ServerApp()

@server.main()
def main(grid, context):
    asked = context.run_config

    class Noted(FedAvg):
        def configure_fit(self, server_round, parameters, client_manager):
            with open(asked["times"], "a") as file:
                print(time.time(), file=file)
            return super().configure_fit(server_round, parameters, client_manager)

    everyone = asked["hospitals"]
    first = ndarrays_to_parameters([np.zeros(asked["parameters"], np.float32)])
    strategy = Noted(
        fraction_evaluate=0.0, min_fit_clients=everyone, min_available_clients=everyone, initial_parameters=first
    )
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=asked["rounds"]), strategy=strategy)
    DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(everyone, everyone // 2 + 1))(grid, legacy)
    with open(asked["times"], "a") as file:
        print(time.time(), file=file)
"""

NVFLARE_APP = """import time
import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_component import FLComponent
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType

class Trivial(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        weights = {name: np.asarray(array) + np.float32(1) for name, array in from_shareable(shareable).data.items()}
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        return DXO(DataKind.WEIGHTS, data=weights, meta=meta).to_shareable()

class Zeros(ModelPersistor):
    def __init__(self, parameters: int):
        super().__init__()
        self.parameters = parameters

    def load_model(self, fl_ctx):
        return make_model_learnable({"all": np.zeros(self.parameters, np.float32)}, {})

    def save_model(self, model, fl_ctx):
        pass

class Noted(FLComponent):
    def __init__(self, times: str):
        super().__init__()
        self.times = times

    def handle_event(self, event_type, fl_ctx):
        if event_type in (AppEventType.ROUND_STARTED, AppEventType.TRAINING_FINISHED):
            with open(self.times, "a") as file:
                print(time.time(), file=file)
"""


def nvflare_server(parameters: int, rounds: int, hospitals: int, times: str, *, he: bool) -> dict[str, object]:
    """Return the configuration of a server; ``he`` sums what is encrypted."""
    kind = "nvflare.app_opt.he" if he else "nvflare.app_common"
    aggregator = (
        f"{kind}.intime_accumulate_model_aggregator.HEInTimeAccumulateWeightedAggregator"
        if he
        else f"{kind}.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator"
    )
    generator = (
        f"{kind}.model_shareable_generator.HEModelShareableGenerator"
        if he
        else f"{kind}.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
    )
    weights = {"expected_data_kind": "WEIGHTS", **({"weigh_by_local_iter": False} if he else {})}
    return {
        "format_version": 2,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [
            {"id": "persistor", "path": "app.Zeros", "args": {"parameters": parameters}},
            {"id": "shareable_generator", "path": generator, "args": {}},
            {"id": "aggregator", "path": aggregator, "args": weights},
            {"id": "noted", "path": "app.Noted", "args": {"times": times}},
        ],
        "workflows": [
            {
                "id": "scatter_and_gather",
                "path": "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather",
                "args": {
                    "min_clients": hospitals, "num_rounds": rounds, "persistor_id": "persistor",
                    "shareable_generator_id": "shareable_generator", "aggregator_id": "aggregator",
                    "train_task_name": "train",
                },
            }
        ],
    }  # fmt: skip


def nvflare_client(*, he: bool) -> dict[str, object]:
    """Return the configuration of a hospital; ``he`` decrypts what comes and encrypts what goes."""
    path = "nvflare.app_opt.he"
    decrypt = {"path": f"{path}.model_decryptor.HEModelDecryptor", "args": {}}
    encrypt = {"path": f"{path}.model_encryptor.HEModelEncryptor", "args": {"weigh_by_local_iter": True}}
    return {
        "format_version": 2,
        "executors": [{"tasks": ["train"], "executor": {"path": "app.Trivial", "args": {}}}],
        "task_data_filters": [{"tasks": ["train"], "filters": [decrypt]}] if he else [],
        "task_result_filters": [{"tasks": ["train"], "filters": [encrypt]}] if he else [],
        "components": [],
    }
