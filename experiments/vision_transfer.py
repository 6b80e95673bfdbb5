"""Fine-tuning a vision transformer: which learning rates are usable, what is learnt and forgotten.

``python -m experiments.vision_transfer`` trains a small one on Fashion-MNIST and adapts it to
KMNIST by full fine-tuning, by updates of this library, and by those of PEFT where it is installed:
tables, two figures and a JSON record. Rates are chosen on validation data, on one grid for all.
"""

import sys
from functools import partial

from experiments.skeleton import Session, experiment
from experiments.transfer.study import SMOKE, Plan, study
from experiments.transfer.vision import pretrained, run

PLAN = Plan(
    rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    seeds=(0, 1, 2),
    final_seeds=(3, 4, 5, 6, 7),
    rank=4,
    epochs=3,
)


def compare(session: Session) -> None:
    """Run the experiment."""
    small = session.smoke
    if not small:
        pretrained(small=False)
    labels = ("KMNIST, accuracy in %", "Fashion-MNIST kept, accuracy in %")
    plan = SMOKE if small else PLAN
    study(session, "vision-transfer", partial(run, small=small), plan, labels)


main = experiment(compare, __doc__)


if __name__ == "__main__":
    sys.exit(main())
