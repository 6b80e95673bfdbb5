"""Numerical building blocks: small, differentiable, safe at every magnitude."""

from lowrank_opt.linalg.cayley import cayley_signs as cayley_signs
from lowrank_opt.linalg.cayley import inverse_cayley as inverse_cayley
from lowrank_opt.linalg.cayley import symmetric_inverse_cayley as symmetric_inverse_cayley
from lowrank_opt.linalg.cayley import tall_cayley as tall_cayley
from lowrank_opt.linalg.contraction import FramedProduct as FramedProduct
from lowrank_opt.linalg.contraction import contraction as contraction
from lowrank_opt.linalg.contraction import framed_product as framed_product
from lowrank_opt.linalg.contraction import inverse_one_plus_gram as inverse_one_plus_gram
from lowrank_opt.linalg.contraction import invert_contraction as invert_contraction
from lowrank_opt.linalg.frames import polar_frame as polar_frame
from lowrank_opt.linalg.frames import qr_frame as qr_frame
from lowrank_opt.linalg.frozen import frozen_product as frozen_product
from lowrank_opt.linalg.frozen import frozen_row_norms as frozen_row_norms
from lowrank_opt.linalg.frozen import rows_at_once as rows_at_once
from lowrank_opt.linalg.projections import project_l1_ball as project_l1_ball
from lowrank_opt.linalg.projections import project_lp_ball as project_lp_ball
from lowrank_opt.linalg.projections import project_top_k_sum as project_top_k_sum
from lowrank_opt.linalg.scaling import lp_norm as lp_norm
from lowrank_opt.linalg.scaling import negligible as negligible
from lowrank_opt.linalg.scaling import normalize_columns as normalize_columns
from lowrank_opt.linalg.scaling import scale_to_unit_peak as scale_to_unit_peak
from lowrank_opt.linalg.scaling import top_k_sum as top_k_sum
from lowrank_opt.linalg.scaling import working_dtype as working_dtype
from lowrank_opt.linalg.svd import leading_svd as leading_svd
from lowrank_opt.linalg.svd import orthonormal_columns as orthonormal_columns
from lowrank_opt.linalg.svd import product_svd as product_svd
