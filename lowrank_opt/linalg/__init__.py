"""Numerical building blocks: small, differentiable, safe at every magnitude.

Nothing here knows an operator, a set or a parameterization.
"""

from lowrank_opt.linalg.cayley import cayley_signs as cayley_signs
from lowrank_opt.linalg.cayley import inverse_cayley as inverse_cayley
from lowrank_opt.linalg.cayley import symmetric_inverse_cayley as symmetric_inverse_cayley
from lowrank_opt.linalg.cayley import tall_cayley as tall_cayley
from lowrank_opt.linalg.contraction import contraction as contraction
from lowrank_opt.linalg.contraction import inverse_one_plus_gram as inverse_one_plus_gram
from lowrank_opt.linalg.contraction import invert_contraction as invert_contraction
from lowrank_opt.linalg.framed import FramedProduct as FramedProduct
from lowrank_opt.linalg.framed import framed_product as framed_product
from lowrank_opt.linalg.frames import nearest_frame as nearest_frame
from lowrank_opt.linalg.frames import polar_frame as polar_frame
from lowrank_opt.linalg.frames import qr_frame as qr_frame
from lowrank_opt.linalg.frozen import frozen_product as frozen_product
from lowrank_opt.linalg.frozen import frozen_row_norms as frozen_row_norms
from lowrank_opt.linalg.frozen import rows_at_once as rows_at_once
from lowrank_opt.linalg.projections import first_inside as first_inside
from lowrank_opt.linalg.projections import project_l1_ball as project_l1_ball
from lowrank_opt.linalg.projections import project_lp_ball as project_lp_ball
from lowrank_opt.linalg.projections import project_top_k_sum as project_top_k_sum
from lowrank_opt.linalg.reflections import reflections as reflections
from lowrank_opt.linalg.reflections import reflections_between as reflections_between
from lowrank_opt.linalg.reflections import reflections_towards as reflections_towards
from lowrank_opt.linalg.rotations import RotationMap as RotationMap
from lowrank_opt.linalg.rotations import rotation as rotation
from lowrank_opt.linalg.rotations import skew_entries as skew_entries
from lowrank_opt.linalg.rotations import skew_matrices as skew_matrices
from lowrank_opt.linalg.rotations import skew_of as skew_of
from lowrank_opt.linalg.rotations import skew_of_turn as skew_of_turn
from lowrank_opt.linalg.scaling import inverse_power_of_two as inverse_power_of_two
from lowrank_opt.linalg.scaling import is_negligible as is_negligible
from lowrank_opt.linalg.scaling import lp_norm as lp_norm
from lowrank_opt.linalg.scaling import negligible as negligible
from lowrank_opt.linalg.scaling import normalize_columns as normalize_columns
from lowrank_opt.linalg.scaling import scale_to_unit_peak as scale_to_unit_peak
from lowrank_opt.linalg.scaling import square_sum as square_sum
from lowrank_opt.linalg.scaling import top_k_sum as top_k_sum
from lowrank_opt.linalg.scaling import unit_peak_factor as unit_peak_factor
from lowrank_opt.linalg.scaling import working_dtype as working_dtype
from lowrank_opt.linalg.singular_values import differentiable_values as differentiable_values
from lowrank_opt.linalg.subspaces import extend_basis as extend_basis
from lowrank_opt.linalg.subspaces import project_out as project_out
from lowrank_opt.linalg.svd import leading_svd as leading_svd
from lowrank_opt.linalg.svd import orthonormal_columns as orthonormal_columns
from lowrank_opt.linalg.svd import product_svd as product_svd
from lowrank_opt.linalg.turning import turn_between as turn_between
from lowrank_opt.linalg.turning import turn_towards as turn_towards
