"""
Balls to play with
==================

Move the parameters of a 2 x 2 matrix and see where it goes. However large they get, the singular values stay in their set (left); right
is what the matrix makes of the unit circle. The numbers were computed by the library when this page was built: parameters are
``size * (cos(angle) * A + sin(angle) * B)`` with random ``A`` and ``B``. Other directions meet the rest of each set.
"""

import json
import math

import torch

import lowrank_opt as lo

SIZES = torch.logspace(-1.5, 1.5, 25, dtype=torch.float64)
ANGLES = torch.arange(36) * (2 * math.pi / 36)
MAPS = {
    "NBLoRA, spectral norm at most 1": (lo.NBLoRA((2, 2), 2, radius=1.0), math.inf),
    "NBLoRA, Frobenius norm at most 1": (lo.NBLoRA((2, 2), 2, radius=1.0, p=2), 2),
    "HomogeneousBall, nuclear norm at most 1": (lo.HomogeneousBall((2, 2), 2, radius=1.0), 1),
    "DeLoRA, nuclear norm at most 1": (lo.DeLoRA((2, 2), 2, radius=1.0), 1),
    "LoRA, which has no bound": (lo.Factored((2, 2), 2), None),
}


@torch.no_grad()
def matrices(module: lo.Parameterization) -> list[list[float]]:
    """Entries and singular values for every size and angle."""
    g = torch.Generator().manual_seed(4)
    module = module.double()
    ends = [
        [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in module.parameters()]
        for _ in "AB"
    ]
    found = []
    for size in SIZES:
        for angle in ANGLES:
            for p, a, b in zip(module.parameters(), *ends, strict=True):
                p.copy_(size * (angle.cos() * a + angle.sin() * b))
            op = module()
            numbers = [*op.to_dense().flatten().tolist(), *op.singular_values().tolist()]
            found.append([round(max(-9.0, min(9.0, x)), 3) for x in numbers])
    return found


DATA = {
    name: {"p": "inf" if p == math.inf else p, "at": matrices(module)}
    for name, (module, p) in MAPS.items()
}
for name, entry in DATA.items():
    print(f"{name:42s} largest singular value {max(x[4] for x in entry['at']):.3f}")

PAGE = """
<div id="balls" style="max-width: 44rem">
<p><label>Map <select id="balls-map"></select></label></p>
<p><label>size of the parameters <input id="balls-size" type="range" min="0" max="24" value="14"></label>
<label>direction <input id="balls-angle" type="range" min="0" max="35" value="5"></label></p>
<div style="display: flex; flex-wrap: wrap; gap: 1rem">
<svg viewBox="-0.15 -1.2 1.5 1.35" style="width: 20rem; max-width: 100%" role="img"
 aria-label="singular values in their set">
<g fill="none" stroke="currentColor" stroke-width="0.008"><path d="M0 0H1.25M0 0V-1.15"/>
<path id="balls-set" stroke-width="0.016" fill="currentColor" fill-opacity="0.1"/></g>
<path id="balls-trail" fill="none" stroke="#2a78b8" stroke-width="0.012"/>
<circle id="balls-dot" r="0.03" fill="#d1495b"/>
<text x="0.5" y="0.12" font-size="0.07" fill="currentColor">largest singular value</text>
<text x="-0.04" y="-0.35" font-size="0.07" fill="currentColor" transform="rotate(-90 -0.04 -0.35)">smallest</text></svg>
<svg viewBox="-1.3 -1.3 2.6 2.6" style="width: 16rem; max-width: 100%" role="img" aria-label="image of the unit circle">
<circle r="1" fill="none" stroke="currentColor" stroke-width="0.01" stroke-dasharray="0.05"/>
<path id="balls-image" fill="#d1495b" fill-opacity="0.2" stroke="#d1495b" stroke-width="0.02"/></svg></div>
<p id="balls-text" role="status"></p></div>
<script>
(function () {
  const data = NUMBERS, names = Object.keys(data), get = (id) => document.getElementById("balls-" + id);
  names.forEach((name) => get("map").add(new Option(name)));
  const outline = {
    "inf": "M0 0H1V-1Z", "1": "M0 0H1L.5 -.5Z", "2": "M0 0H1A1 1 0 0 0 .70711 -.70711Z", "null": ""
  };
  function show() {
    const entry = data[get("map").value], i = +get("size").value, k = +get("angle").value;
    const at = (j) => entry.at[36 * i + j], [a, b, c, d, s, t] = at(k);
    const trail = [...Array(37).keys()].map((j) => at(j % 36).slice(4)).map(([x, y]) => x + " " + -y);
    get("set").setAttribute("d", outline[String(entry.p)]);
    get("trail").setAttribute("d", "M" + trail.join("L"));
    get("dot").setAttribute("cx", s);
    get("dot").setAttribute("cy", -t);
    const rim = [...Array(73).keys()].map((j) => [Math.cos(j * Math.PI / 36), Math.sin(j * Math.PI / 36)]);
    get("image").setAttribute("d", "M" + rim.map(([x, y]) => (a * x + b * y) + " " + -(c * x + d * y)).join("L"));
    get("text").textContent = "singular values " + s.toFixed(3) + " and " + t.toFixed(3);
  }
  ["map", "size", "angle"].forEach((id) => get(id).addEventListener("input", show));
  show();
})();
</script>
"""


class Page:
    """What a notebook or this documentation shows as HTML."""

    def _repr_html_(self) -> str:
        return PAGE.replace("NUMBERS", json.dumps(DATA, separators=(",", ":")))


Page()
