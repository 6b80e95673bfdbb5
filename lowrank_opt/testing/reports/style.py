"""The page of the HTML report, with the style and the script that go into it."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1f24; --faint: #5a6572; --line: #d8dee4; --box: #f5f7f9;
  --good: #1a7f37; --bad: #c4232f; --warn: #8a5d00; --link: #0b5fc1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --ink: #e4e8ec; --faint: #9aa5b1; --line: #323b45; --box: #1d232a;
    --good: #4cc26a; --bad: #ff7b78; --warn: #e0b04b; --link: #74b0ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1.05rem; margin: 0 0 .5rem; }
a { color: var(--link); }
code, pre { font: .875rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
h2 code { font-size: 1.1rem; }
.outcome {
  font-weight: 600; padding: .5rem .75rem; border-left: .3rem solid; background: var(--box);
}
.counts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; list-style: none; padding: 0; }
.counts strong { font-size: 1.4rem; margin-right: .25rem; }
.passed { color: var(--good); }
.failed { color: var(--bad); }
.expected_failure { color: var(--warn); }
.skipped { color: var(--faint); }
.badge {
  border: 1px solid; border-radius: 1rem; padding: 0 .55rem; font-size: .8rem; white-space:
  nowrap;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td {
  text-align: left; vertical-align: top; padding: .45rem .6rem; border-bottom: 1px solid
  var(--line);
}
th { color: var(--faint); font-weight: 600; font-size: .85rem; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.note { color: var(--faint); font-size: .85rem; }
h2 + .wide { margin-bottom: 1.5rem; }
.failure {
  border: 1px solid var(--line); border-left: .3rem solid var(--bad); padding: .9rem; margin: 0
  0 1.25rem;
}
.failure p { margin: .25rem 0; }
.found { color: var(--bad); font-weight: 600; }
.bar {
  display: flex; justify-content: space-between; align-items: center; gap: 1rem; margin-top:
  .75rem; color: var(--faint); font-size: .85rem;
}
button {
  font: inherit; color: var(--link); background: var(--paper); border: 1px solid var(--line);
  border-radius: .3rem; padding: .3rem .8rem; cursor: pointer;
}
pre {
  background: var(--box); padding: .75rem; overflow-x: auto; margin: .4rem 0 0; overflow-wrap:
  normal;
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { color: var(--faint); }
dd { margin: 0; }
@media (max-width: 40rem) {
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { border: 0; padding: .1rem 0; }
  td.number {
    display: inline-block; text-align: left; margin-right: 1rem; color: var(--faint); font-size:
    .85rem;
  }
}
"""

# Pages opened from a file have no clipboard in some browsers: there the code is selected.
SCRIPT = """
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      window.getSelection().selectAllChildren(code);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  });
}
"""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: {{ outcome }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<header>
<h1>{{ name }}</h1>
<p class="outcome {{ mark }}">{{ outcome }}</p>
<ul class="counts">
{% for status, word in words.items() %}
<li class="{{ status }}"><strong>{{ session.count(status) }}</strong>
{{ "hold" if status == "passed" else word }}</li>
{% endfor %}
</ul>
<p>Profile {{ session.settings.profile }}, {{ dtype }} on {{ session.settings.device }}, seed
<code>{{ session.settings.seed }}</code>, {{ "%.1f" | format(session.seconds) }} s.
The same seed repeats the same examples.</p>
{% if session.interrupted %}
<p>Interrupted after {{ session.verdicts | map(attribute="results") | map("length") | sum }} laws;
the others were not tried.</p>
{% endif %}
{% if session.verdicts | length > 1 %}
<div class="wide"><table>
<thead><tr><th>target</th><th>hold</th><th>broken</th></tr></thead>
<tbody>
{% for v in session.verdicts %}
{% set index = loop.index0 %}
<tr><td><a href="#target-{{ index }}">{{ v.target.name }}</a></td><td>{{ v.count("passed") }}</td>
<td>{% for r in v.broken %}<a class="failed" href="#law-{{ index }}-{{ r.check }}">{{ r.check }}</a>
{% else %}none{% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
</header>
{% for v in session.verdicts %}
{% set index = loop.index0 %}
<section>
<h2 id="target-{{ index }}"><code>{{ v.target.name }}</code></h2>
<div class="wide"><table>
<thead><tr><th>law</th><th>verdict</th><th>examples</th><th>time</th></tr></thead>
<tbody>
{% for r in v.results %}
<tr><td><strong>{% if r.status == "failed" %}
<a href="#law-{{ index }}-{{ r.check }}">{{ r.check }}</a>
{% else %}{{ r.check }}{% endif %}</strong><div class="note">{{ r.statement }}</div></td>
<td><span class="badge {{ r.status }}">{% if r.message.startswith("not judged") %}
not judged{% else %}{{ words[r.status] }}{% endif %}</span>
{% if r.message %}<div class="note">{{ r.message }}</div>{% endif %}</td>
<td class="number">{{ r.examples }}</td>
<td class="number">{{ "%.2f" | format(r.seconds) }} s</td></tr>
{% endfor %}
</tbody></table></div>
{% for r in v.broken %}
{% set place = "law-%d-%s" | format(index, r.check) %}
<article class="failure" id="{{ place }}">
<h3><span class="badge failed">broken</span> {{ r.check }}</h3>
<p>{{ r.statement }}</p>
<p class="found">{{ r.message }}</p>
<div class="bar"><span>smallest counter-example, seed {{ r.seed }}</span>
<button type="button" data-copy="{{ place }}-code">copy</button></div>
<pre id="{{ place }}-code"><code>{{ r.code }}</code></pre>
</article>
{% endfor %}
</section>
{% endfor %}
<footer><h2>Environment</h2><dl>
{% for name, value in environment.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl></footer>
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""
