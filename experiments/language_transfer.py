"""Fine-tuning a sentence encoder: which learning rates are usable, what is learnt and forgotten.

``python -m experiments.language_transfer`` adapts all-MiniLM-L6-v2 to kinds of questions, or with
``--data`` to other classes, by LoRA, bounded updates and LoRA that spares what similarity uses;
trained updates are also taken back towards zero. Forgetting is what is lost of the rank correlation
with the similarities of STS-B. Eight CPU minutes: the last two layers, three rates, one seed to
choose them. ``--whole`` adapts all layers in every way, in hours.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial

from experiments.skeleton import Session, experiment
from experiments.transfer.language import PROTECTED, pretrained, run, run_and_rewind
from experiments.transfer.methods import LORA, methods
from experiments.transfer.sentences import NAMES
from experiments.transfer.study import SMOKE, Plan, study

BALLS = ("NBLoRA, radius 2", "DeLoRA, radius 8")
PEER = "DeLoRA of PEFT"
DEPTH = 2
_REWOUND = (LORA, *BALLS, PROTECTED)
PLAN = Plan(
    rates=(3e-3, 1e-2, 3e-2),
    seeds=(0,),
    final_seeds=(1, 2, 3),
    rank=4,
    epochs=2,
    batch=32,
    names=(LORA, *BALLS, PROTECTED),
    rewound=_REWOUND,
    head_rates=(1e-2, 1e-1),
    beyond=10.0,
)
WHOLE = Plan(
    rates=(1e-4, 1e-3, 1e-2, 1e-1),
    seeds=(0, 1, 2),
    final_seeds=(3, 4, 5),
    rank=4,
    epochs=2,
    batch=32,
    rewound=_REWOUND,
    beyond=10.0,
)


def compare(session: Session) -> None:
    """Run the experiment."""
    small, data = session.smoke, session.options.data
    depth = None if session.options.whole else DEPTH
    if not small:
        pretrained(small=False, depth=depth)
    labels = (f"{data}, accuracy in %", "STS-B kept, 100 x rank correlation")
    plan = _plan(session)
    given = {"data": data, "small": small, "depth": depth}
    runs = partial(run, **given), partial(run_and_rewind, **given)
    study(session, f"language-transfer-{data}", runs[0], plan, labels, runs[1])


def _plan(session: Session) -> Plan:
    """Return what is run; updates of PEFT where it is installed."""
    if session.smoke:
        names = (LORA, PROTECTED)
        return replace(SMOKE, names=names, rewound=names, beyond=10.0)
    plan = WHOLE if session.options.whole else PLAN
    more = [PEER] if PEER in methods() and plan.names else []
    seeds = plan.final_seeds[: session.options.seeds]
    return replace(plan, names=(*plan.names, *more), final_seeds=seeds)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=NAMES, default="trec", help="what is learnt")
    parser.add_argument("--whole", action="store_true", help="all layers, every method, in hours")
    parser.add_argument("--seeds", type=int, default=3, help="of the test")


main = experiment(compare, __doc__, options=_options)


if __name__ == "__main__":
    sys.exit(main())
