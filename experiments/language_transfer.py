"""Fine-tuning a sentence encoder: which learning rates are usable, what is learnt and forgotten.

``python -m experiments.language_transfer`` adapts all-MiniLM-L6-v2 to intents of bank customers, or
with ``--data`` to other classes, by the methods of ``experiments.vision_transfer``. Forgetting is
what is lost of the rank correlation with the similarities of STS-B. Four hours of a slow core.
"""

import argparse
import sys
from functools import partial

from experiments.skeleton import Session, experiment
from experiments.transfer.language import pretrained, run
from experiments.transfer.sentences import NAMES
from experiments.transfer.study import SMOKE, Plan, study

PLAN = Plan(
    rates=(1e-4, 1e-3, 1e-2, 1e-1), seeds=(0, 1, 2), final_seeds=(3, 4, 5), rank=4, epochs=2
)


def compare(session: Session) -> None:
    """Run the experiment."""
    small, data = session.smoke, session.options.data
    if not small:
        pretrained(small=False)
    labels = (f"{data}, accuracy in %", "STS-B kept, 100 x rank correlation")
    plan = SMOKE if small else PLAN
    study(session, "language-transfer", partial(run, data=data, small=small), plan, labels)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=NAMES, default=NAMES[0], help="what is learnt")


main = experiment(compare, __doc__, options=_options)


if __name__ == "__main__":
    sys.exit(main())
