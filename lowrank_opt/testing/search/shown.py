"""What a counter-example prints before it runs the law: both sides of the inequality, plainly."""

from __future__ import annotations

from string import Template
from textwrap import dedent

from lowrank_opt.testing.cases.case import Subject

# Laws about the module as constructed: no values are written into its parameters.
START_ONLY = frozenset({"completeness", "projection", "lmo"})


def shown_lines(law: str, subject: Subject, found: str) -> list[str]:
    """Return the lines of Python that show what a law compares; none for an unknown law.

    Parameters
    ----------
    law : str
    subject : Subject
        The case; its module is named W and its factory make.
    found : str
        What was found: chooses between the ways of breaking a law.
    """
    template = _template(law, found)
    m, n = subject.case.shape
    fresh = _fresh(subject)
    values = {"m": m, "n": n, "dtype": subject.dtype, "seed": subject.seed, "fresh": fresh}
    return Template(dedent(template)).substitute(values).strip().splitlines()


def _fresh(subject: Subject) -> str:
    """Return the construction of another module of the same kind."""
    words = f"{subject.case.shape}, {subject.case.rank}"
    if "dtype" in subject.keywords:
        return f"make({words}, dtype={subject.dtype})"
    return f"make({words}).to(dtype={subject.dtype})"


def _template(law: str, found: str) -> str:
    if law in ("membership", "rank") and "not finite" in found:
        return _FACTORS
    if law == "smoothness":
        return _DIFFERENCES if "directional" in found else _GRADIENT
    if law == "purity" and "right_inverse" in found:
        return _PURITY + "W.right_inverse(W.factors().detach())\n" + _CHANGED
    return _SHOWN.get(law, "")


_FACTORS = """
op = W.factors().detach()
print("left:", op.left.tolist())
print("scale:", op.scale.tolist())
print("right:", op.right.tolist())
"""
_EXCESS = """
op = W.factors().detach()
print("singular values:", op.singular_values().tolist())
print("excess over", W.feasible_set, "is", W.feasible_set.excess(op))
"""
_GRADIENT = """
value = W().linear(torch.ones($n, dtype=$dtype)).sum()
print("W depends on the parameters, to autograd:", value.requires_grad)
if value.requires_grad:
    value.backward()
for name, p in W.named_parameters():
    print("gradient of", name, None if p.grad is None else p.grad.tolist())
"""
_DIFFERENCES = """
W = W.double()
names = [name for name, p in W.named_parameters() if p.requires_grad]
values = [W.get_parameter(name) for name in names]


def dense(*parameters):
    return torch.func.functional_call(W, dict(zip(names, parameters))).to_dense()


agrees = torch.autograd.gradcheck(dense, values, raise_exception=False)
print("autograd agrees with finite differences:", agrees)
"""
_PURITY = """
before = {name: x.clone() for name, x in W.state_dict().items()}
print("first call: ", W().to_dense().tolist())
print("second call:", W().to_dense().tolist())
"""
_CHANGED = """
W.certify()
after = W.state_dict()
print("changed:", [name for name, x in before.items() if not torch.equal(x, after[name])])
"""
_SHOWN = {
    "contract": """
        print("made:", type(W).__name__, "asked for a $m x $n matrix")
        print("a call returns:", type(W()).__name__, getattr(W(), "shape", "without a shape"))
    """,
    "membership": _EXCESS,
    "rank": """
        op = W.factors().detach()
        print("singular values:", op.singular_values().tolist())
        print("declared rank:", W.feasible_set.rank)
    """,
    "escape": """
        print("excess at the start:", W.feasible_set.excess(W.factors().detach()))
        # The check takes steps of Adam from here, towards larger norms.
    """,
    "agreement": """
        op = W().detach()
        dense = (op.left * op.scale) @ op.right.mT
        rows, cols = torch.arange($m).repeat_interleave($n), torch.arange($n).repeat($m)
        views = {
            "to_dense()": op.to_dense(),
            "W @ x": op @ torch.eye($n).to(dense),
            "W.mT @ y": (op.mT @ torch.eye($m).to(dense)).mT,
            "linear(x)": op.linear(torch.eye($n).to(dense)).mT,
            "entries": op.entries(rows, cols).reshape($m, $n),
        }
        for name, view in views.items():
            print(name, "differs from the dense product by", (view - dense).abs().max().item())
    """,
    "merge": """
        op = W.train()().detach()
        print("forward while training:", op.linear(torch.eye($n, dtype=$dtype)).mT.tolist())
        op = W.eval()().detach()
        print("merged:", op.to_dense().tolist())
        print("product of the factors:", ((op.left * op.scale) @ op.right.mT).tolist())
    """,
    "dtype": """
        print("asked for:", $dtype)
        print("parameters:", {name: p.dtype for name, p in W.named_parameters()})
        print("factors:", [x.dtype for x in W()])
    """,
    "zero_start": """
        W.zero_(generator=torch.Generator().manual_seed($seed))
        op = W()
        print("W after zero_():", op.to_dense().tolist())
        op.linear(torch.ones($n, dtype=$dtype)).sum().backward()
        for name, p in W.named_parameters():
            print("gradient of", name, None if p.grad is None else p.grad.tolist())
    """,
    "section": """
        target = W.factors().detach()
        image = $fresh
        image.load_state_dict(W.right_inverse(target), strict=False)
        print("W:       ", target.to_dense().tolist())
        print("F(G(W)): ", image.factors().to_dense().tolist())
    """,
    "completeness": """
        target = case.target.build(W.feasible_set, ($m, $n), dtype=$dtype)
        image = $fresh
        image.load_state_dict(W.right_inverse(target), strict=False)
        print("W:       ", target.to_dense().tolist())
        print("F(G(W)): ", image.factors().to_dense().tolist())
    """,
    "purity": _PURITY + _CHANGED,
    "copies": """
        import copy

        print("W:", W().to_dense().tolist())
        torch.manual_seed($seed + 1)
        other = $fresh
        other.load_state_dict(W.state_dict())
        print("a new module with its state:", other().to_dense().tolist())
        print("a deep copy:", copy.deepcopy(W)().to_dense().tolist())
    """,
    "in_place": """
        import copy

        W()
        trainable = {name: p for name, p in W.named_parameters() if p.requires_grad}
        moved = {name: p.detach() + 0.1 for name, p in trainable.items()}
        expected = torch.func.functional_call(copy.deepcopy(W), moved)
        print("new parameters give:  ", expected.to_dense().tolist())
        with torch.no_grad():
            for p in trainable.values():
                p.add_(0.1)
        print("a step in place gives:", W().to_dense().tolist())
    """,
    "never_dense": """
        from lowrank_opt.testing import forbid_dense

        stored = max(x.numel() for x in (*W.parameters(), *W.buffers()))
        print("largest stored tensor:", stored, "numbers; the matrix has", $m * $n)
        with forbid_dense(W):
            W().linear(torch.ones(4, $n, dtype=$dtype)).sum().backward()
            W.certify()
    """,
    "certificate": _EXCESS + "print(W.certify())\n",
    "projection": """
        from lowrank_opt import LowRankOperator

        member = case.target.build(W.feasible_set, ($m, $n), dtype=$dtype)
        point = W.feasible_set.project(member)
        print("a member:      ", member.to_dense().tolist())
        print("its projection:", point.to_dense().tolist())
        outside = LowRankOperator.from_dense(50.0 * torch.randn($m, $n, dtype=$dtype))
        point = W.feasible_set.project(outside)
        print("an operator:   ", outside.singular_values().tolist())
        print("its projection:", point.singular_values().tolist())
        print("excess:", W.feasible_set.excess(point))
    """,
    "lmo": """
        G = torch.randn($m, $n, dtype=$dtype)
        found = (G * W.feasible_set.lmo(G).to_dense()).sum().item()
        members = [W.feasible_set.sample(($m, $n), dtype=$dtype) for _ in range(100)]
        print("<G, lmo(G)> =", found)
        print("one of 100 members has", min((G * X.to_dense()).sum().item() for X in members))
    """,
}
