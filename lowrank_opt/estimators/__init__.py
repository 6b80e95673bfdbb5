"""Estimators in the manner of scikit-learn, which this subpackage imports.

Rooms: `data`, `choice`, `folders`. Reading tables is in `tables`, solving in `completion`.
"""

from lowrank_opt.extras import extra

with extra("estimators"):
    import sklearn as sklearn

from lowrank_opt.estimators.imputer import LowRankImputer as LowRankImputer
from lowrank_opt.estimators.matrix_completion import MatrixCompletion as MatrixCompletion
from lowrank_opt.estimators.ranking import Recommendations as Recommendations
from lowrank_opt.estimators.recommender import Recommender as Recommender
from lowrank_opt.tables import Labels as Labels
