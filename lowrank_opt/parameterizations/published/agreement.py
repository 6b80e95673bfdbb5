"""How far each method of the table is from its published formula, as a test measures it.

The formulas stand in ``tests/unit/parameterizations/test_agreement.py``, written anew in NumPy; a
number here is the largest relative difference, at random parameters in float64, that the test
allows.
"""

# By the name in the table. What is missing has no published form of its own: a composition, a ball
# of this package, or an option that no paper has.
AGREEMENT: dict[str, float] = {
    "AdaLoRA": 1e-14,
    "Complement(inner, left, right)": 1e-13,
    "DeLoRA(radius)": 1e-13,
    "DynamicRank": 1e-14,
    "ETHER(weight, blocks=r)": 1e-13,
    "ETHERPlus(weight, blocks=r)": 1e-13,
    "Factored": 1e-14,
    "HomogeneousBall(radius)": 1e-13,
    "NBLoRA(bounds)": 1e-12,
    "NBLoRA(radius)": 1e-12,
    "NormalizedLoRA": 1e-13,
    "SVDFrames": 1e-12,
    "ScaledRotation(weight, rank)": 1e-12,
    "VeRA": 1e-14,
    "WeightDecomposed(inner, weight)": 1e-13,
    "hra(weight, 2 r)": 1e-13,
    "lora_xs": 1e-12,
    "nora": 1e-12,
    "oft(weight, blocks)": 1e-12,
    "olora": 1e-12,
    "pissa": 1e-12,
    "polar(radius)": 1e-12,
    "psoft(weight, 2 r)": 1e-12,
    "rslora": 1e-14,
    "stella": 1e-12,
}


def agreement(name: str) -> str:
    """Return what the table says: the formula, to so much, or that there is none.

    Examples
    --------
    >>> agreement("VeRA"), agreement("RadialBall(radius)")
    ('its formula, 1e-14', 'a form of our own')
    """
    bound = AGREEMENT.get(name)
    return "a form of our own" if bound is None else f"its formula, {bound:.0e}"
