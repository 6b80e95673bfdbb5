"""One small change of a source file at a time: what the mutants of a file are.

The kinds are those of mutmut and cosmic-ray that leave running programs (operators, comparisons,
constants, negations, keywords, decorators), and what neither drops: a statement, a check, a factor
of a chain. Replacing arguments and assignments by ``None`` is left out: nearly every test notices,
which only flatters a score.
"""

import ast
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

ARITHMETIC: Mapping[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
COMPARISONS: Mapping[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
PAIRS = (
    ("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("any", "all"), ("floor", "ceil"),
    ("clamp_min", "clamp_max"), ("minimum", "maximum"), ("zeros_like", "ones_like"),
    ("zeros", "ones"), ("triu", "tril"), ("rows", "cols"), ("left", "right"),
    ("next_up", "next_down"), ("up", "down"), ("upper", "lower"),
)  # fmt: skip
SWAPPED = {**dict(PAIRS), **{b: a for a, b in PAIRS}}
# Calls without an argument, and attributes, that are left out of a chain.
# fmt: off
DROPPED_CALLS = frozenset((
    "abs", "clone", "conj", "contiguous", "copy", "detach", "double", "eval", "neg", "sqrt",
    "square", "strip", "sum",
))
# fmt: on
DROPPED_ATTRIBUTES = frozenset({"mT", "T", "mH"})
# fmt: off
KEPT_DECORATORS = frozenset((
    "abstractmethod", "classmethod", "contextmanager", "dataclass", "final", "overload", "override",
    "property", "runtime_checkable", "setter", "staticmethod",
))
# fmt: on
UNTOUCHED_FUNCTIONS = frozenset({"__repr__", "__str__", "extra_repr", "_repr_html_", "__dir__"})


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Parameters
    ----------
    path : str
        Of the file, from the root of the repository.
    function : str
        Qualified name of the innermost function around the change; empty at the level of a module
        or a class, decorators and defaults included.
    first_line : int
        Of that function's code.
    line, start, end : int
        Line, and offsets in the source of what is replaced.
    operator : str
    before, after : str
        What is replaced, and by what.
    text, occurrence : str, int
        The line it is in, and how often it came before with the same change: they name the mutant
        when other parts of the file change.
    """

    path: str
    function: str
    first_line: int
    line: int
    start: int
    end: int
    operator: str
    before: str
    after: str
    text: str
    occurrence: int = 0

    @property
    def id(self) -> str:
        """Return a name that stays while the line and its function stay."""
        parts = (self.path, self.function, self.text, self.operator, self.before, self.after)
        return hashlib.sha256("\0".join((*parts, str(self.occurrence))).encode()).hexdigest()[:16]

    def applied(self, source: str) -> str:
        """Return the mutated source; the number of lines stays."""
        lost = self.before.count("\n") - self.after.count("\n")
        return source[: self.start] + self.after + "\\\n" * lost + source[self.end :]

    def compiles(self, source: str) -> bool:
        """Return whether the mutated source is a program."""
        try:
            compile(self.applied(source), "mutant", "exec")
        except (SyntaxError, ValueError):
            return False
        return True


def mutants(path: str, source: str) -> list[Mutant]:
    r"""Return every mutant of a file, in order of the source; a few of them may not compile.

    Examples
    --------
    >>> [(m.before, m.after) for m in mutants("f.py", "def f(x):\n    return x < 2")]
    [('<', '<='), ('2', '3')]
    """
    visitor = _Visitor(path, source)
    visitor.visit(ast.parse(source))
    seen: dict[tuple[str, ...], int] = {}
    found: list[Mutant] = []
    for mutant in sorted(visitor.found, key=lambda m: (m.start, m.end, m.after)):
        key = (mutant.function, mutant.text, mutant.operator, mutant.before, mutant.after)
        number = seen[key] = seen.get(key, -1) + 1
        found.append(replace(mutant, occurrence=number))
    return found


class _Visitor(ast.NodeVisitor):
    def __init__(self, path: str, source: str) -> None:
        self.path, self.source, self.found = path, source, list[Mutant]()
        lines = source.splitlines(keepends=True)
        self.lines = [line.rstrip("\n") for line in lines]
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line))
        self.scopes: list[tuple[str, bool]] = []
        self.function, self.first_line = "", 0

    # Positions of ast count bytes.
    def at(self, line: int, column: int) -> int:
        text = self.lines[line - 1].encode()[:column].decode()
        return self.starts[line - 1] + len(text)

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.at(node.lineno, node.col_offset)
        return start, self.at(node.end_lineno, node.end_col_offset)

    def add(self, operator: str, start: int, end: int, after: str) -> None:
        line = self.source.count("\n", 0, start) + 1
        text, before = self.lines[line - 1].strip(), self.source[start:end]
        self.found.append(
            Mutant(
                self.path, self.function, self.first_line, line, start, end, operator, before,
                after, text,
            )
        )  # fmt: skip

    def between(
        self, operator: str, left: ast.expr, right: ast.expr, words: tuple[str, str]
    ) -> None:
        """Replace an operator that stands between two expressions, brackets aside."""
        low, high = self.span(left)[1], self.span(right)[0]
        # Comments between them hold words, too.
        code = re.sub("#.*", lambda found: " " * len(found[0]), self.source[low:high])
        if (place := code.find(words[0])) >= 0:
            where = low + place
            self.add(operator, where, where + len(words[0]), words[1])

    # What is left alone.
    def visit_Raise(self, node: ast.Raise) -> None:
        """Messages."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Messages."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Messages."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {t.id for t in node.targets if isinstance(t, ast.Name)}
        if names & {"__all__", "__slots__"} or ast.unparse(node.value).startswith("Literal["):
            return
        self.visit(node.value)

    # Scopes.
    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if any(ast.unparse(base).startswith("Protocol") for base in node.bases):
            return
        self.scopes.append((node.name, False))
        for item in node.body:
            self.visit(item)
        self.scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in UNTOUCHED_FUNCTIONS or "overload" in map(ast.unparse, node.decorator_list):
            return
        for decorator in node.decorator_list:
            self._decorator(decorator)
        for default in (*node.args.defaults, *(x for x in node.args.kw_defaults if x)):
            self.visit(default)
        outer = self.function, self.first_line
        self.function = self._qualified(node.name)
        self.first_line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        self.scopes.append((node.name, True))
        for item in node.body:
            self.visit(item)
        self.scopes.pop()
        self.function, self.first_line = outer

    def _qualified(self, name: str) -> str:
        return "".join(n + (".<locals>." if inside else ".") for n, inside in self.scopes) + name

    def _decorator(self, node: ast.expr) -> None:
        called = node.func if isinstance(node, ast.Call) else node
        if ast.unparse(called).rpartition(".")[2] in KEPT_DECORATORS:
            return
        start, end = self.span(node)
        self.add("decorator dropped", start - 1, end, "")

    # Statements.
    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
            return
        self.add("statement dropped", *self.span(node), "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add("statement dropped", *self.span(node), "pass")
        if type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            self.between("arithmetic", node.target, node.value, (f"{old}=", f"{new}="))
        self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self._branch(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._branch(node.test)
        self.generic_visit(node)

    def _branch(self, test: ast.expr) -> None:
        for word in ("False", "True"):
            self.add(f"condition {word.lower()}", *self.span(test), word)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add("continue", *self.span(node), "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.add("break", *self.span(node), "continue")

    # Expressions.
    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC:
            self.between("arithmetic", node.left, node.right, ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, sides[:-1], sides[1:], strict=True):
            self.between("comparison", left, right, COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values[:-1], node.values[1:], strict=True):
            self.between("and, or", left, right, words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, end = self.span(node.operand)
        self.add("sign or negation dropped", *self.span(node), self.source[start:end])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self.add("constant", *self.span(node), str(not node.value))
            case int() | float():
                self.add("constant", *self.span(node), repr(node.value + 1))
            case _:
                pass

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func).endswith((".warn", "cast", "TypeVar")):
            return
        empty = not node.args and not node.keywords
        if isinstance(node.func, ast.Attribute) and empty and node.func.attr in DROPPED_CALLS:
            end = self.span(node.func.value)[1]
            self.add("call dropped", end, self.span(node)[1], "")
        for keyword in node.keywords:
            if keyword.arg is not None:
                self._keyword(keyword)
        self.generic_visit(node)

    def _keyword(self, node: ast.keyword) -> None:
        start, end = self.span(node)
        comma = self.source[end:].lstrip().startswith(",")
        end = self.source.index(",", end) + 1 if comma else end
        self.add("argument dropped", start, end, "")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        inner, end = self.span(node.value)[1], self.span(node)[1]
        if node.attr in DROPPED_ATTRIBUTES:
            self.add("attribute dropped", inner, end, "")
        if node.attr in SWAPPED:
            self.add("name swapped", end - len(node.attr), end, SWAPPED[node.attr])
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in SWAPPED and isinstance(node.ctx, ast.Load) and node.id not in {"up", "down"}:
            self.add("name swapped", *self.span(node), SWAPPED[node.id])
