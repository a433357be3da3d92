"""Whatever reads bytes is fuzzed, or says here why nobody else's bytes reach it; nothing reads what can run code."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.decoders import DECODERS

ROOT = Path(__file__).parents[2]

READS = re.compile(
    r"json\.loads?\(|model_validate_json\(|validate_json\(|msgpack\.Decoder\(|(msgpack|json)\.decode\(|yaml\.safe_load\("
    r"|read_yaml\(|tomllib\.loads\(|np\.(load|fromfile)\(|read_array_header|zipfile\.ZipFile\(|tarfile\.open\(|csv\.(Dict)?[rR]eader\("
    r"|load_(pem|der|ssh)_\w+\(|safe_open\(|safetensors\.load\(|sqlite3\.connect\(|Image\.open\(|dcmread\(|torch\.load\("
    r"|FromString\(|ParseFromString\("
)

RUNS_CODE = re.compile(
    r"\b(c?[pP]ickle|_pickle|joblib|dill|shelve|marshal)\.(load|loads|Unpickler|open)\(|yaml\.(load|full_load|unsafe_load)"
    r"(_all)?\(|allow_pickle=True|weights_only=False|np\.load\((?!.*allow_pickle=False)|torch\.load\((?!.*weights_only=True)"
    r"|(?<![.\w])(eval|exec)\("
)

OF_OUR_OWN = "bytes of this repository or of a locked package"
OWN_RESULTS = "results of a measurement, which it has written itself"
OF_A_CHILD = "the words of a process that it has started itself"

FUZZED: dict[str, tuple[str, ...] | str] = {
    "client/agreement.py": ("agreed-terms",),
    "client/data/archives.py": ("archive",),
    "client/data/cache.py": ("prepared",),
    "client/data/watch.py": ("began-with",),
    "client/data/known_tables.py": ("known-table",),
    "client/data/readers/dicom.py": ("dicom",),
    "client/data/readers/npz.py": ("npz",),
    "client/data/readers/raster.py": ("raster",),
    "client/data/tables.py": ("catalogue", "labels"),
    "deploy/containers/between.py": ("dealt-data-set",),
    "client/enrolment.py": "a certificate whose SHA-256 is the one in the invitation, and nothing else",
    "client/features.py": "what this hospital's agent has cached; NumPy's heads are fuzzed as array",
    "client/kept_runs.py": ("received-run",),
    "client/ledger/chain.py": ("ledger", "ledger-anchor", "anchor"),
    "client/ledger/held.py": ("ledger-held",),
    "client/ledger/place.py": ("ledger-place",),
    "client/ledger/remembered.py": ("ledger-statement",),
    "client/ledger/salvage.py": ("ledger", "ledger-anchor"),
    "client/named.py": ("named-hospitals",),
    "client/own_results.py": ("own-results",),
    "client/proved_model.py": "what this hospital's agent has kept itself; what is not whole counts as lost",
    "client/received_run.py": ("received-model", "received-facts", "received-tensors"),
    "client/round_state.py": ("answered-rounds",),
    "client/last_standing.py": ("standing",),
    "client/status.py": ("status",),
    "common/audit/chain.py": ("audit-chain", "audit-entries"),
    "common/audit/parties.py": ("audit-chain",),
    "common/config.py": ("config", "run-description"),
    "common/identity/enrolment.py": ("enrolment",),
    "common/evaluation/state.py": ("evaluation-state",),
    "common/run/basis.py": ("basis",),
    "common/telemetry/events.py": ("events", "received-events"),
    "common/models/first_model.py": ("first-model",),
    "common/flower/bundle.py": "the bundle that it has built itself a moment before",
    "common/identity/certificates.py": (
        "certificate",
        "hospital-request",
        "server-request",
        "supernode-key",
        "private-keys",
    ),
    "common/identity/invitation.py": ("invitation",),
    "common/identity/ledger_statement.py": ("ledger-statement",),
    "common/identity/members.py": ("members",),
    "common/run/messages.py": ("request", "reply", "array", "flower-request", "flower-reply"),
    "common/models/efficientnet.py": OF_OUR_OWN,
    "common/models/backbone.py": OF_A_CHILD,
    "common/models/onnx_rules.py": ("onnx",),
    "common/models/onnx_worker.py": "the words of the process that has started it",
    "common/models/imagenet_resnet.py": "the file whose SHA-256 torchvision has published, and nothing else",
    "common/provenance.py": OF_OUR_OWN,
    "common/identity/revocation.py": ("revocations",),
    "common/run/delivery.py": ("delivery",),
    "common/run/proposal.py": ("proposal", "run-answer"),
    "common/run/round_terms.py": ("round-terms",),
    "common/settings.py": ("settings",),
    "common/shards.py": ("manifest", "shard-description", "shard-image"),
    "common/yaml_text.py": ("config", "pacs-access", "roster"),
    "deploy/audit/figures.py": ("summary",),
    "deploy/cli.py": OF_OUR_OWN,
    "deploy/demo/dealer_service.py": ("dealt-data-set",),
    "deploy/demo/dealing.py": "what the demo's dealer itself has noted",
    "deploy/demo/dealt_shard.py": ("dealt-shard",),
    "deploy/datasets/image_tree.py": ("image-tree",),
    "deploy/datasets/own_data.py": ("own-data", "known-table"),
    "deploy/demo/features.py": "an index of features that it has written itself",
    "deploy/models/check.py": OF_A_CHILD,
    "deploy/experiment/runner.py": OWN_RESULTS,
    "deploy/experiment/study.py": OWN_RESULTS,
    "deploy/development/image_packages.py": OF_OUR_OWN,
    "deploy/audit/evidence.py": OF_OUR_OWN,
    "deploy/hospital/pacs/access.py": ("pacs-access",),
    "deploy/hospital/pacs/accounts.py": ("fetched",),
    "deploy/hospital/pacs/dicomweb.py": ("pacs-matches",),
    "deploy/results/model_file.py": ("model", "model-card"),
    "deploy/results/run_folder.py": ("delivery",),
    "deploy/results/report_facts.py": ("summary",),
    "deploy/results/stored_answers.py": ("stored-answers",),
    "deploy/development/supply_chain.py": OF_A_CHILD,
    "server/members/authority.py": ("register",),
    "server/members/ledgers.py": ("ledger-statement",),
    "server/members/certificates.py": "what the authority beside it has signed; certificates are fuzzed",
    "server/checkpoints.py": ("checkpoint",),
    "server/flower/control.py": ("supernode-key",),
    "server/flower/pieces.py": "what the ServerApp of the same user and machine sends; pieces must hash to their names",
    "server/operator_socket.py": ("operator-request",),
    "server/run_queue.py": ("kept-run",),
    "server/members/versions.py": "what the enrolment service beside it has kept of messages, which are fuzzed",
    "server/members/roster.py": ("roster", "invited"),
}
"""What reads bytes, with its decoders in ``confide dev fuzz``, or why it has none."""


def sources() -> list[Path]:
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--", "client/*.py", "common/*.py", "deploy/*.py", "server/*.py"),
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_each_module_that_reads_bytes_is_fuzzed_or_says_why_not() -> None:
    reading = {str(path.relative_to(ROOT)) for path in sources() if READS.search(path.read_text(encoding="utf-8"))}
    assert reading == FUZZED.keys()


def test_each_decoder_that_is_named_is_fuzzed() -> None:
    named = {name for decoders in FUZZED.values() if isinstance(decoders, tuple) for name in decoders}
    assert named <= {decoder.name for decoder in DECODERS}


def test_nothing_is_read_that_can_run_code() -> None:
    found = [str(path.relative_to(ROOT)) for path in sources() if RUNS_CODE.search(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)", "yaml.load(text)", "np.load(path)", "torch.load(path)", "np.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)", "joblib.load(path)", "eval(text)",
    ],
)  # fmt: skip
def test_what_can_run_code_is_told_by_its_line(line: str) -> None:
    assert RUNS_CODE.search(line)
