"""Programs of a lying server that are stored with what comes of them, so that another implementation can replay them.

``python -m tests.support.lying_server_programs`` writes ``tests/vectors/lying_server``. Each file holds a program and
what is expected: for each step each hospital's kind of reply or code of refusal, which sums the server can unmask in
the end, and how many lines of each account each hospital's ledger has.
"""

import json
from pathlib import Path
from typing import Any

from tests.support.lying_server import (
    ASKED_OF_ALONE,
    ASKED_OF_TRAINING,
    KINDS,
    MODES,
    Program,
    Step,
    honest_round,
    play,
    quick_hospitals,
    random_program,
)

FOLDER = Path(__file__).parent.parent / "vectors" / "lying_server"

FOUR = [1, 2, 3, 4]
FIVE = [1, 2, 3, 4, 5]
SIX = [1, 2, 3, 4, 5, 6]
CLASSES, INTERIM, LAST, TEST = range(4)
"""Releases of the plan of a run of two rounds."""


def described(mode: str, dropouts: int = 1, run: int = 1, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - sections
    """Return one of a program's runs."""
    privacy = {"mode": mode, "colluders": 1, "tolerated_dropouts": dropouts, **changes.pop("privacy", {})}
    return {"id": run, "changes": {"privacy": privacy, **changes}}


def program(
    comment: str,
    steps: list[Step],
    mode: str = "local",
    *,
    hospitals: int = 4,
    colluders: tuple[int, ...] = (),
    dropouts: int = 1,
    policy: dict[str, Any] | None = None,
    runs: tuple[dict[str, Any], ...] = (),
) -> Program:
    """Return a program of a run in a mode, and perhaps others."""
    return Program(hospitals, colluders, policy or {}, (described(mode, dropouts), *runs), tuple(steps), comment)


def bent(steps: list[Step], place: int, **fields: Any) -> list[Step]:  # noqa: ANN401 - fields of a step
    """Return the steps with some fields of one changed."""
    return [{**step, **fields} if number == place else step for number, step in enumerate(steps)]


def split_terms(
    victim: dict[str, Any], others: dict[str, Any], everyone: list[int] | None = None, number: int = 1
) -> list[Step]:
    """Return a round in which hospital 1 is asked for something else than the others, and all survive."""
    everyone = everyone or FOUR
    steps = honest_round(everyone, number=number, **others)
    masks = steps[2]
    return [
        *steps[:2],
        {**masks, "to": [1], "terms": victim},
        {**masks, "to": everyone[1:]},
        *steps[3:],
    ]


TRAIN: dict[str, Any] = {"purpose": "train", "release": CLASSES}
BARE: dict[str, Any] = {"purpose": "train"}
MEASURE: dict[str, Any] = {"purpose": "evaluate", "release": TEST}


def _honest() -> dict[str, Program]:
    found = {}
    for mode in MODES:
        steps = honest_round(FOUR, **TRAIN) + honest_round(FOUR, number=2, dropped=[3], **MEASURE)
        found[f"honest-{mode}"] = program("An honest server; one hospital drops out of the second round.", steps, mode)
    riding = honest_round(FOUR, **TRAIN)
    riding = bent(bent(riding, 2, next=2), 3, next=FOUR)
    found["honest-riding-keys"] = program(
        "Keys and shares of the second round ride on the first.", riding + honest_round(FOUR, number=2, **MEASURE)[2:]
    )
    return found


def _terms() -> dict[str, Program]:
    found = {}
    for mode in MODES:
        victim, others = {"purpose": "train", "release": TEST}, MEASURE
        found[f"row-1-{mode}"] = program(
            "One hospital trains, the others of its round do not: the sum would be its update.",
            split_terms(victim, others),
            mode,
        )
        found[f"row-1-{mode}-with-a-colluder"] = program(
            "The same, with a hospital that signs whatever is useful.",
            split_terms(victim, others),
            mode,
            colluders=(4,),
        )
    for name, victim in {
        "model": {**TRAIN, "model": 1},
        "question": {**TRAIN, "release": INTERIM},
        "no-question": BARE,
        "edges": {"purpose": "train", "release": INTERIM, "edges": 2.0},
        "fewest-survivors": {**TRAIN, "fewest": 0},
    }.items():
        others = {"purpose": "train", "release": INTERIM} if name == "edges" else TRAIN
        found[f"another-{name}-for-one"] = program(
            f"One hospital is shown another {name}.", split_terms(victim, others)
        )
    found["release-that-the-plan-lacks"] = program(
        "A release is asked for that the plan does not have.", honest_round(FOUR, purpose="evaluate", release=7)
    )
    return found


def _lists() -> dict[str, Program]:
    everything = honest_round(FOUR, **TRAIN)
    outside = [
        {**step, **({"to": [1, 2, 3]} if number >= 2 else {})} for number, step in enumerate(honest_round(FOUR, **BARE))
    ]
    outside = bent(outside, 2, cohort=[1, 2, 3])
    for place in (3, 4):
        outside = bent(outside, place, to=[1, 2], survivors=[1, 2, 4], dropped=[3])
    two_gone = honest_round(FIVE, dropped=[4, 5], **BARE)
    second = [
        *everything[:4],
        {**everything[3], "survivors": [1, 2, 3], "dropped": [4]},
        everything[4],
    ]
    halves = honest_round(FIVE, **BARE)
    halves = [
        *halves[:3],
        {**halves[3], "to": [1, 2], "survivors": [1, 2, 3, 5], "dropped": [4]},
        {**halves[3], "to": [3, 4], "survivors": [1, 3, 4, 5], "dropped": [2]},
        {**halves[4], "to": [1, 2], "survivors": [1, 2, 3, 5], "dropped": [4]},
        {**halves[4], "to": [3, 4], "survivors": [1, 3, 4, 5], "dropped": [2]},
    ]
    both = [bent(everything, place, survivors=FOUR, dropped=[4])[place] for place in (3, 4)]
    neither = [bent(everything, place, survivors=[1, 2, 3], dropped=[])[place] for place in (3, 4)]
    silenced = honest_round(FOUR, dropped=[4], **TRAIN)
    silenced = bent(silenced, 2, to=FOUR)
    return {
        "declared-dropped": program("A hospital whose vector is there is declared dropped.", silenced),
        "survivor-outside-the-cohort": program(
            "A colluder that is not in the cohort stands for a survivor.", outside, colluders=(4,)
        ),
        "two-of-five-dropped": program("Fewer survive than the threshold of four.", two_gone, hospitals=5),
        "second-signature": program("A second list is to be signed.", second),
        "two-lists-with-a-colluder": program(
            "Two lists of survivors, one for each half, and a colluder that signs both.",
            halves,
            hospitals=5,
            colluders=(5,),
        ),
        "dropped-and-alive": program("A hospital is on both lists.", everything[:3] + both),
        "neither-dropped-nor-alive": program("A hospital is on no list.", everything[:3] + neither),
        "second-unmasking": program(
            "The other kind of share is asked for afterwards.",
            [*everything, {**everything[4], "survivors": [1, 2, 3], "dropped": [4]}],
        ),
        "unmasking-before-signing": program("Shares are asked for first.", [*everything[:3], everything[4]]),
        "too-few-signatures": program(
            "Two of three signatures are shown.",
            bent(everything, 4, signers=[1, 2]),
        ),
        "signatures-of-another-round": program(
            "Signatures of the first round are shown in the second.",
            everything + bent(honest_round(FOUR, number=2, **TRAIN), 4, of=[0, 1]),
        ),
    }


def _openings() -> dict[str, Program]:
    """Return programs of a server that opens the sum over everybody at once, where it may and where it may not."""
    found = {}
    for mode in MODES:
        steps = honest_round(FOUR, at_once=True, **TRAIN) + honest_round(FOUR, number=2, dropped=[3], **MEASURE)
        found[f"opened-{mode}"] = program(
            "Nobody is missing in the first round, and somebody in the second.", steps, mode
        )
    at_once = honest_round(FOUR, at_once=True, **TRAIN)
    begin, opening = at_once[:3], at_once[3]
    riding = bent(bent(at_once, 2, next=2), 3, next=FOUR)
    found["opened-riding-keys"] = program(
        "Keys and shares of the second round ride on the first, whose sum is opened at once.",
        riding + honest_round(FOUR, number=2, at_once=True, **MEASURE)[2:],
    )
    sign, unmask = (
        {**step, "to": [1, 2, 4], "survivors": [1, 2, 4], "dropped": [3]} for step in honest_round(FOUR, **TRAIN)[3:]
    )
    for name, steps in {
        "opened-then-signed": [opening, sign, unmask],
        "signed-then-opened": [sign, opening, unmask],
        "unmasked-then-opened": [sign, unmask, opening],
        "opened-twice": [opening, opening],
        "opened-replayed": [opening, {"do": "replay", "to": FOUR, "request": 9}],
        "opened-then-restarted": [
            {**opening, "to": [1, 2]},
            {"do": "restart", "to": FOUR},
            {"do": "advertise", "to": FOUR, "run": 0, "round": 2},
            sign,
            opening,
            unmask,
        ],
        "signed-then-restarted": [
            {**sign, "to": [1, 2]},
            {"do": "restart", "to": FOUR},
            {"do": "advertise", "to": FOUR, "run": 0, "round": 2},
            opening,
            unmask,
        ],
    }.items():
        comment = f"Both endings of a round, or one again: {', '.join(step['do'] for step in steps)}."
        found[name] = program(comment, begin + steps, colluders=(4,))
    found.update(_mixed_endings())
    split = split_terms({"purpose": "train", "release": TEST}, MEASURE)[:4]
    for name, colluders in {"opened-row-1": (), "opened-row-1-with-a-colluder": (4,)}.items():
        found[name] = program(
            "One hospital trains and the others do not, and everybody is asked to open the sum.",
            [*split, opening],
            colluders=colluders,
        )
    found["opened-with-a-view-missing"] = program(
        "The signed view of one hospital is not shown.", [*begin, {**opening, "signers": [1, 2, 3]}]
    )
    found["opened-with-views-of-another-round"] = program(
        "Views of the first round are shown in the second.",
        at_once + bent(honest_round(FOUR, number=2, at_once=True, **TRAIN), 3, of=[0, 1]),
    )
    found["opened-with-somebody-missing"] = program(
        "One hospital sent no vector, and the others are asked to open the sum over everybody.",
        [*honest_round(FOUR, dropped=[4], **TRAIN)[:3], {**opening, "to": [1, 2, 3]}],
    )
    return found


def _mixed_endings() -> dict[str, Program]:
    """Return programs in which some open the sum over everybody and others are told that somebody is missing."""
    found = {}
    six = honest_round(SIX, **BARE)
    lists = {"survivors": [2, 3, 4, 5, 6], "dropped": [1]}
    sign, unmask = ({**step, "to": [2, 3, 4, 5], **lists} for step in six[3:])
    begin, opening = six[:3], honest_round(SIX, at_once=True, **BARE)[3]
    for name, steps in {
        "opened-by-one-then-unmasked-by-others": [{**opening, "to": [1]}, sign, unmask],
        "unmasked-by-others-then-opened-by-one": [sign, unmask, {**opening, "to": [1]}],
        "opened-by-two-of-five-who-are-needed": [{**opening, "to": [1, 2]}, sign, unmask],
    }.items():
        found[name] = program(
            "The full list to some, a shorter one to the others, and a colluder who signs both.",
            [*begin, *steps],
            hospitals=6,
            colluders=(6,),
        )
    masks = six[2]
    found["opened-in-two-cohorts"] = program(
        "Two cohorts in a round, each asked to open the sum over everybody, and a colluder in both.",
        [
            *six[:2],
            {**masks, "to": [1, 2], "cohort": [1, 2, 4, 5, 6]},
            {**masks, "to": [3, 4, 5], "cohort": SIX},
            opening,
            sign,
            unmask,
        ],
        hospitals=6,
        colluders=(6,),
    )
    return found


def _cohorts() -> dict[str, Program]:
    everything = honest_round(FOUR, **TRAIN)
    six = honest_round(SIX, **BARE)
    masks = six[2]
    parted = [
        *six[:2],
        {**masks, "to": [1, 2], "cohort": [1, 2, 4, 5, 6]},
        {**masks, "to": [3, 4, 5], "cohort": SIX},
        *six[3:],
    ]
    two_directories = [
        everything[0],
        {**everything[1], "to": [1, 2, 3], "directory": [1, 2, 3]},
        {**everything[1], "to": [4], "directory": FOUR},
        *everything[2:],
    ]
    one_cohort_less = [*six[:2], {**masks, "to": [1], "cohort": FIVE}, {**masks, "to": SIX[1:]}, *six[3:]]
    return {
        "another-cohort-for-one": program(
            "One hospital is shown a cohort without the colluder.", one_cohort_less, hospitals=6, colluders=(6,)
        ),
        "cohort-of-two": program("A cohort below the threshold.", bent(everything, 2, cohort=[1, 2])),
        "cohort-without-one": program("A cohort that leaves out who is asked.", bent(everything, 2, cohort=[2, 3, 4])),
        "two-cohorts": program("Two cohorts in a round, and a colluder.", parted, hospitals=6, colluders=(6,)),
        "directory-of-two": program("A directory below the threshold.", bent(everything, 1, directory=[1, 2])),
        "two-directories": program("Two directories in a round.", two_directories),
        "threshold-lowered": program(
            "A threshold below that of the hospitals present.",
            bent(honest_round(FIVE, **BARE), 1, threshold=3),
            hospitals=5,
        ),
        "second-vector": program(
            "A second vector is asked for, of another model.",
            [*everything[:3], {**everything[2], "terms": {**TRAIN, "model": 1}}, *everything[3:]],
        ),
        "bare-vector": program(
            "The vector is asked for without masks.",
            [*everything, {"do": "plain", "to": FOUR, "run": 0, "round": 2, "terms": TRAIN}],
        ),
    }


def _noise() -> dict[str, Program]:
    found = {}
    for mode in MODES:
        terms = BARE if mode == "distributed" else TRAIN
        found[f"too-little-noise-{mode}"] = program(
            "One drops out where none may, for the noise needs all four.",
            honest_round(FOUR, dropped=[4], **terms),
            mode,
            dropouts=0,
        )
        again = [step for number in (1, 2, 3) for step in honest_round(FOUR, number=number, **MEASURE)]
        found[f"evaluation-again-{mode}"] = program("The test part is measured a third time.", again, mode)
        found[f"evaluation-budget-{mode}"] = program(
            "The budget for evaluation is too small: noise comes, and no count.",
            honest_round(FOUR, **MEASURE),
            mode,
            policy={"evaluation_epsilon_budget": 0.1},
        )
        found[f"fewest-survivors-understated-{mode}"] = program(
            "The terms say that fewer vectors have noise enough.",
            honest_round(FOUR, dropped=[4], **TRAIN, fewest=3),
            mode,
            dropouts=0,
        )
    return found


def _runs() -> dict[str, Program]:
    found = {}
    first = honest_round(FOUR, **TRAIN)
    for mode in MODES:
        patient = described(mode, run=2, privacy={"unit": "patient"})
        record = described(mode, run=3)
        found[f"row-9-unit-{mode}"] = program(
            "A run for each record at hospitals whose budget is for each patient.",
            honest_round(FOUR, run=1, **TRAIN) + honest_round(FOUR, run=2, **TRAIN),
            mode,
            policy={"unit": "patient"},
            runs=(patient, record),
        )
        weak = described(mode, run=2, privacy={"colluders": 0})
        found[f"row-9-adversary-{mode}"] = program(
            "A run whose noise withstands no colluder, at hospitals that want it to withstand one.",
            first + honest_round(FOUR, run=1, **TRAIN),
            mode,
            policy={"min_colluders": 1},
            runs=(weak,),
        )
        found[f"row-6-part-of-the-consortium-{mode}"] = program(
            "A run of three of six, of whom one colludes.",
            honest_round([4, 5, 6], run=1, **BARE),
            mode,
            hospitals=6,
            colluders=(6,),
            runs=({**described(mode, run=2), "without": [1, 2, 3]},),
        )
    other = described("local", training={"learning_rate": 0.5})
    two = described("local", run=2)
    differs = honest_round(FOUR, **TRAIN)
    differs = [{**differs[0], "to": [1], "run": 1}, {**differs[0], "to": [2, 3, 4]}, *differs[1:]]
    found["description-differs-for-one"] = program(
        "One hospital is shown another description under the same run id.", differs, runs=(other,)
    )
    found["runs-interleaved"] = program(
        "Another run begins when the vectors of the first are there.",
        first[:3] + honest_round(FOUR, run=1, **TRAIN) + first[3:],
        runs=(two,),
    )
    found["restarted-before-signing"] = program(
        "Hospitals are restarted when they have masked, and the round is led again.",
        [*first[:3], {"do": "restart", "to": [1, 2]}, *first[3:], *first],
    )
    found["replays"] = program(
        "The requests of the first round come again, to everybody.",
        [*first, *({"do": "replay", "to": FOUR, "request": number} for number in range(0, 20, 2))],
    )
    return found


WHO: dict[str, Any] = {"purpose": "evaluate", "release": ASKED_OF_TRAINING}
AGREED: dict[str, Any] = {"allow_statistics_epsilon": 1.0}


def _asking(mode: str, run: int = 1) -> dict[str, Any]:
    """Return a run that asks who is trained on."""
    return described(mode, run=run, evaluation={"statistics_epsilon": 1.0})


def _statistics() -> dict[str, Program]:
    """Return programs of a server that asks who is trained on, where it may and where it may not."""
    found = {}
    both = split_terms(WHO, MEASURE)
    rounds = {number: honest_round(FOUR, number=number, **WHO) for number in range(1, 5)}
    trained = honest_round(FOUR, number=2, dropped=[3], **TRAIN)
    for mode in MODES:
        asking, rich = (_asking(mode), _asking(mode, run=2)), {"allow_statistics_epsilon": 1000.0}
        for name, comment, policy, steps in (
            ("statistics", "Who is trained on, and a round of training after it.", AGREED, [*rounds[1], *trained]),
            (
                "statistics-again",
                "Who is trained on is asked a third time.",
                rich,
                [*rounds[1], *rounds[2], *rounds[3]],
            ),
            ("statistics-not-agreed", "Hospitals that agree to no statistics are asked.", {}, rounds[1]),
            (
                "statistics-of-two-runs",
                "Two runs in turn ask for what is agreed to once: afterwards noise comes, and no count.",
                AGREED,
                [*rounds[1], *({**step, "run": 1} for step in rounds[2]), *rounds[3]],
            ),
            (
                "statistics-of-one",
                "One hospital is asked who is trained on, the others for a measurement.",
                AGREED,
                both,
            ),
            (
                "statistics-in-training",
                "Who is trained on is asked in a round of training.",
                AGREED,
                honest_round(FOUR, **{**WHO, "purpose": "train"}),
            ),
        ):
            found[f"{name}-{mode}"] = Program(4, (), policy, asking, tuple(steps), comment)
    return found


COMPARE: dict[str, Any] = {"purpose": "evaluate", "release": ASKED_OF_ALONE}


def _comparisons() -> dict[str, Program]:
    """Return programs of a server that asks how its model does against hospitals' own, as it may and as it may not."""
    found = {}
    rounds = {number: honest_round(FOUR, number=number, **COMPARE) for number in range(1, 4)}
    trained = honest_round(FOUR, **TRAIN)
    for mode in MODES:
        run, sampled = {"alone_share": 0.5}, {} if mode == "none" else {"sample_rate": 1.0}
        comparing = (described(mode, privacy=run, training=sampled),)
        for name, comment, policy, steps in (
            ("once", "A round of training, and then the comparison.", {}, [*trained, *rounds[2]]),
            ("at-once", "The comparison before anything is trained.", {}, rounds[1]),
            ("again", "The comparison is asked a third time.", {}, [*rounds[1], *rounds[2], *rounds[3]]),
            (
                "without-budget",
                "Hospitals' budgets for training have no room for models of their own: noise comes, and no count.",
                {"epsilon_budget": 1.0},
                rounds[1],
            ),
            (
                "of-one",
                "One hospital is asked to compare, the others for a measurement.",
                {},
                split_terms(COMPARE, MEASURE),
            ),
            (
                "in-training",
                "The comparison is asked in a round of training.",
                {},
                honest_round(FOUR, **{**COMPARE, "purpose": "train"}),
            ),
        ):
            found[f"comparison-{name}-{mode}"] = Program(4, (), policy, comparing, tuple(steps), comment)
    return found


def _two_colluders() -> dict[str, Program]:
    """Return programs of seven hospitals of whom two collude, the most that the threshold is made for."""
    found = {}
    seven = list(range(1, 8))
    for mode in MODES:
        run = described(mode, privacy={"colluders": 2}, aggregation={"min_hospitals": 4})
        honest = honest_round(seven, **TRAIN)
        begin, (sign, unmask) = honest[:3], honest[3:]
        halves = [
            {**step, "to": to, "survivors": [each for each in seven if each != lost], "dropped": [lost]}
            for step in (sign, unmask)
            for to, lost in (([1, 2, 3], 5), ([4, 5], 1))
        ]
        outside = [{**step, "to": FIVE[:3]} for step in bent(honest, 2, cohort=FIVE)[2:]]
        outside = [
            {**step, **({} if step["do"] == "mask" else {"survivors": [1, 2, 3, 6, 7], "dropped": [4, 5]})}
            for step in outside
        ]
        split = split_terms({"purpose": "train", "release": TEST}, MEASURE, seven)
        for name, comment, steps in (
            ("honest", "Two collude in an honest round.", honest),
            ("row-1", "One hospital trains, the others do not, and two sign whatever is useful.", split),
            ("two-lists", "Two lists of survivors, one for each half of the honest, and two that sign both.",
             [*begin, *halves]),
            ("outside-the-cohort", "Two that are not in the cohort stand for survivors.", [*honest[:2], *outside]),
        ):  # fmt: skip
            found[f"two-colluders-{name}-{mode}"] = Program(7, (6, 7), {}, (run,), tuple(steps), comment)
    return found


def trusted(mode: str, run: int = 1) -> dict[str, Any]:
    """Return a run that withstands a server which keeps to the protocol alone."""
    return described(mode, run=run, aggregation={"adversary": "semi-honest"})


def _semi_honest() -> dict[str, Program]:
    found = {}
    rounds = [
        *honest_round(FOUR, trusted=True, **TRAIN),
        *honest_round(FOUR, number=2, dropped=[3], trusted=True, **MEASURE),
    ]
    for mode in MODES:
        for name, comment, policy in (
            (
                "agreed",
                "An honest server of hospitals that trust it; one hospital drops out.",
                {"allow_semi_honest": True},
            ),
            ("refused", "Hospitals that trust no server are asked to.", {}),
        ):
            found[f"semi-honest-{name}-{mode}"] = Program(4, (4,), policy, (trusted(mode),), tuple(rounds), comment)
    return found


def programs() -> dict[str, Program]:
    """Return every stored program by its name."""
    found = {**_honest(), **_terms(), **_lists(), **_openings(), **_cohorts(), **_noise(), **_runs()}
    found |= {**_statistics(), **_comparisons(), **_two_colluders(), **_semi_honest()}
    found |= {f"random-{kind}-{seed}": random_program(seed, kind=kind) for kind in KINDS for seed in range(2)}
    return {**found, **{f"random-{seed}": random_program(seed) for seed in range(6)}}


def encoded(made: Program) -> bytes:
    """Play a program, and return its file."""
    tree = {"program": made.as_json(), "expected": play(made).stored}
    return as_text(tree).encode()


def as_text(tree: Any) -> str:  # noqa: ANN401 - any JSON
    """Return JSON that a person can read: a step, or a hospital's replies to it, on each line."""
    program, expected = tree["program"], tree["expected"]
    parts = [f'"{key}": {_list(value)}' for key, value in program.items()]
    answers = [f'"{key}": {_list(value)}' for key, value in expected.items()]
    inner = ",\n    ".join(parts), ",\n    ".join(answers)
    return f'{{\n  "program": {{\n    {inner[0]}\n  }},\n  "expected": {{\n    {inner[1]}\n  }}\n}}\n'


def _list(value: Any) -> str:  # noqa: ANN401 - any JSON
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n      " + ",\n      ".join(json.dumps(each) for each in value) + "\n    ]"


def write(folder: Path) -> None:
    """Write all files, and remove others."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    with quick_hospitals():
        for name, made in programs().items():
            (folder / f"{name}.json").write_bytes(encoded(made))


if __name__ == "__main__":
    write(FOLDER)
