"""Figures in the convention of scikit-learn: a display is computed once, and drawn at will.

Matplotlib is imported when something is drawn. What is drawn is computed elsewhere.
"""

from lowrank_opt.plots.convergence import ConvergenceDisplay as ConvergenceDisplay
from lowrank_opt.plots.path import PathDisplay as PathDisplay
from lowrank_opt.plots.residuals import ResidualDisplay as ResidualDisplay
from lowrank_opt.plots.spectrum import SpectrumDisplay as SpectrumDisplay
