"""report.html: what a tuning has found, how, and why its answer is fast, as one page for a person."""

import math
import re
from collections import Counter

import matplotlib

from evaluation import pages
from evaluation.pages import Html, bullets, element, folded, number_text, paragraph, side_by_side, table
from halide_tools.execution import BACKGROUND_CPU_LIMIT
from tuning import results
from tuning.duel import NOISE, REPEATS
from tuning.run import ADAMS2019

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

N_MATTERED = 3  # changes of the winner that are shown first
LEAST_SHARE = 0.01  # of the time, that a Func must take to have a bar of its own
LOOPS = re.compile(r"\b(parallel|vectorized|unrolled|produce|gpu_\w+)\b")


def tuning_page(run, pool, measured, report, schedule_header):
    """The text of the page.

    run, pool : TuningRun and Pool; measured : {way to choose: keys in the order of measuring}; report : what report.json holds, with
    `explained`; schedule_header : the directives for C++
    """
    explained = report["explained"]
    parts = [
        *summary(run, report),
        element("h2", "The search"),
        pages.figure(
            results.draw_search(run, measured), "search",
            "Measured milliseconds in the order of measuring, by where a schedule comes from, and the fastest so far.",
        ),
        origins_table(run, measured["lstm"]),
        *rivals(report),
        element("h2", "Predicted against measured"),
        *predicted_against_measured(run, pool),
        element("h2", "The schedule"),
        *schedule_part(run, report, schedule_header),
        element("h2", "Time per Func"),
        *time_per_func(run, report),
        element("h2", "The changes that mattered most"),
        *mattered(run, report),
        element("h2", "All measured schedules"),
        folded("Show them", measured_table(run, pool)),
    ]  # fmt: skip
    if explained["left_out"]:
        parts += [element("h2", "Left out"), bullets(explained["left_out"])]
    return pages.page(f"{report['program']}, tuned", parts)


def summary(run, report):
    """What was found, and what it is worth."""
    adams2019_ms, hand_written = report["adams2019_ms"], report["hand_written_ms"]
    worth = Html(
        f"<strong>{number_text(report['speedup'])} times as fast</strong> as Adams2019's own choice ({number_text(adams2019_ms)} ms)."
        if adams2019_ms
        else "Adams2019's own choice could not be measured."
    )
    author = f" The author's schedule takes {number_text(hand_written)} ms." if hand_written else ""
    yield paragraph(
        Html(f"The fastest schedule takes <strong>{number_text(report['best_ms'])} ms</strong> and comes from "),
        element("code", report["origin"]), ": ", worth, author, f" Each time is the median of up to {REPEATS} fresh, interleaved runs ",
        "that took no part in the choice.",
    )  # fmt: skip
    busy = report["background"] > BACKGROUND_CPU_LIMIT
    warning = (
        f"Others used {report['background']:.0%} of the machine meanwhile: measure again on an idle one before you rely on these times."
    )
    yield bullets([*report["notes"], *([warning] if busy else [])])
    extents = report["minimum_extents"]
    sizes = [f"{' x '.join(map(str, size['extents']))}: {size['outcome']} {size['detail']}".strip() for size in report["other_sizes"]]
    facts = [
        ("target", report["target"]), ("threads", report["threads"]), ("protocol", report["protocol"]),
        ("parameters", ", ".join(f"{name}={value}" for name, value in report["params"].items()) or "none"),
        ("stages", report["stages"]), ("schedules proposed", report["proposed"]), ("schedules measured", report["measured"]),
        ("failed", ", ".join(f"{n} {reason}" for reason, n in report["failed"].items()) or "none"),
        ("smallest output", "not known" if extents is None else "; ".join(" x ".join(map(str, sizes)) for sizes in extents)),
        ("outputs of other sizes", "; ".join(sizes) or "not compared"),
        ("share of the machine that others used", f"{report['background']:.1%}"),
        ("compared with", f"the program with the schedule {report['reference']!r}"),
    ]  # fmt: skip
    inputs = [(name, i["type"], i["dimensions"], i["contents"]) for name, i in (report["inputs"] or {}).items()]
    yield folded(
        "How it was tuned", table(["what", "is"], [(what, str(value)) for what, value in facts]),
        table(["input", "type", "dimensions", "contents"], inputs) if inputs else "",
    )  # fmt: skip


def origins_table(run, keys):
    """What was found by which origin: how many were measured, the fastest, and how often one improved on all before."""
    counts, fastest, improved, best = Counter(), {}, Counter(), math.inf
    for key in keys:
        origin, ms = run.outcomes[key]["origin"], run.runtime_ms(key)
        counts[origin] += 1
        fastest[origin] = min(ms, fastest.get(origin, math.inf))
        improved[origin] += ms < best
        best = min(ms, best)
    rows = [(origin, counts[origin], fastest[origin], improved[origin]) for origin in sorted(fastest, key=fastest.get)]
    return table(["origin", "measured", "fastest, ms", "times it was the fastest so far"], rows)


def rivals(report):
    if report["rivals"]:
        rows = [(name, rival["measured"], rival["best_ms"]) for name, rival in report["rivals"].items()]
        yield element("h3", "Other ways to choose")
        yield table(["rival", "measured", "fastest, ms"], rows)


def predicted_ms(pool):
    return {key: math.exp(log_predicted) for key, log_predicted in zip(pool.keys, pool.log_predicted)}


def predicted_against_measured(run, pool):
    predicted = predicted_ms(pool)
    keys = [key for key in run.measured() if key in predicted]
    if not keys:
        yield paragraph("The model has predicted none of the measured schedules.")
        return
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    for origin, colour in results.ORIGIN_COLOURS.items():
        at = [(run.runtime_ms(key), predicted[key]) for key in keys if run.outcomes[key]["origin"] == origin]
        if at:
            axis.plot(*zip(*at), "o", ms=4, color=colour, label=origin)
    ends = [f(run.runtime_ms(key) for key in keys) for f in (min, max)]
    axis.plot(ends, ends, "k-", lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    yield pages.figure(
        figure, "predicted", "The model's predictions before what was measured here corrects them. On the line they are equal."
    )  # fmt: skip


def loop_nest(text):
    """Halide's own print of the loops, with what makes them fast in bold."""
    return element("pre", Html(LOOPS.sub(r"<b>\1</b>", pages.escaped(text.rstrip()))), class_="loops")


def schedule_part(run, report, schedule_header):
    nests, key = report["explained"]["loop_nests"], report["best"]["key"]
    titles = {key: "The fastest schedule"} | ({ADAMS2019: "Adams2019's own choice"} if key != ADAMS2019 else {})
    shown = [Html(element("h3", title) + loop_nest(nests[k])) for k, title in titles.items() if k in nests]
    if shown:
        yield side_by_side(*shown)
    steps = report["explained"]["history"]
    if len(steps) > 1:
        yield paragraph("How it came to be, each schedule made of the one before:")
        yield table(
            ["schedule", "origin", "changes", "ms"], [(int(s["key"]), s["origin"], ", ".join(s["kinds"]), s["ms"]) for s in steps]
        )  # fmt: skip
    yield folded("The directives, for C++", element("pre", schedule_header))


def time_per_func(run, report):
    profile, key, predicted = (report["explained"]["profile"], report["best"]["key"], report["explained"]["predicted_ms"] or {})
    names = {ADAMS2019: "Adams2019's own choice", key: "the fastest schedule"} if key != ADAMS2019 else {key: "Adams2019's own choice"}
    names = {k: name for k, name in names.items() if k in profile}
    if not names:
        yield paragraph("Not known; see below.")
        return
    whole = max(sum(profile[k].values()) for k in names)
    cost = {func: max(profile[k].get(func, 0.0) for k in names) for func in dict.fromkeys(f for k in names for f in profile[k])}
    funcs = [func for func in sorted(cost, key=cost.get) if cost[func] >= LEAST_SHARE * whole]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.45 * len(funcs)), layout="constrained")
    height = 0.8 / len(names)
    for i, (k, name) in enumerate(names.items()):
        colour = "C1" if k == key else results.ORIGIN_COLOURS["adams2019"]
        at = [row + height * (len(names) / 2 - i - 0.5) for row in range(len(funcs))]
        axis.barh(at, [profile[k].get(func, 0.0) for func in funcs], height, color=colour, label=name)
    axis.set(yticks=range(len(funcs)), xlabel="ms a call")
    axis.set_yticklabels(funcs, parse_math=False)
    axis.legend(fontsize="small", loc="lower right")
    yield pages.figure(
        figure, "funcs",
        "Milliseconds a call by Func, as Halide's profiler tells. It samples, and slows the program down: shares tell more than sums. "
        "A Func that is inlined counts as part of its readers.",
    )  # fmt: skip
    columns = ["Func", *(f"{name}, ms" for name in names.values())] + (["the fastest schedule as predicted, ms"] if predicted else [])
    rows = [
        (func, *(profile[k].get(func) for k in names), *([predicted.get(func)] if predicted else []))
        for func in [*reversed(sorted(cost, key=cost.get)), *(func for func in predicted if func not in cost)]
    ]  # fmt: skip
    yield table(columns, rows)


def mattered(run, report):
    undone = report["explained"]["undone"]
    if undone is None:
        is_changed = report["origin"] == "mutated"
        yield paragraph(
            "Not known; see below." if is_changed else "Nothing was changed: the fastest schedule is as its origin proposed it."
        )
        return
    first, noise = report["explained"]["history"][0], f"Differences of {NOISE:.0%} and less tell nothing"
    how = {
        "measured": f"checked, and measured once, interleaved with the fastest schedule. {noise}, on a busy machine more.",
        "predicted": f"and predicted by the model, since there was no time to measure it: nothing here was run or checked. {noise}.",
    }[undone["how"]]
    yield paragraph(
        f"The fastest schedule was made of {run.name_of(first['key'])} ({first['origin']}). "
        f"Each difference between the two was undone alone, {how} "
        f"The fastest schedule takes {number_text(undone['winner_ms'])} ms beside them. Changes that help only together all look valuable."
    )
    rows = [(line["what"], line["ms"], 100 * line["slower"], directives(line)) for line in undone["changes"]]
    columns = ["without", "it takes, ms", "more, %", "directives that are lost (-) and come back (+)"]
    if rows:
        yield table(columns, rows[:N_MATTERED])
    if rows[N_MATTERED:]:
        yield folded(f"{len(rows) - N_MATTERED} that mattered less", table(columns, rows[N_MATTERED:]))
    not_tried = [f"{undone['not_tried']} other differences were not tried."] if undone["not_tried"] else []
    yield bullets([*undone["refused"], *not_tried])


def directives(line):
    signed = [f"- {text}" for text in line["lost"]] + [f"+ {text}" for text in line["back"]]
    return folded(f"{len(line['lost'])} lost, {len(line['back'])} back", element("pre", "\n".join(signed)))


def measured_table(run, pool):
    predicted, rows = predicted_ms(pool), []
    for key in run.measured():
        found = run.outcomes[key]
        made_of = int(found["edit_of"]) if "edit_of" in found else None
        kinds = ", ".join(found.get("kinds", ()))
        rows.append((int(key), found["origin"], run.runtime_ms(key), predicted.get(key), made_of, kinds))
    return table(["schedule", "origin", "measured, ms", "predicted, ms", "made of", "changes"], rows)
