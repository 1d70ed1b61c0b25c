"""Report how well a trained model predicts: on test programs it has never seen, and on held-out collections, beside rival models.

    python evaluate_model.py
    python evaluate_model.py --run_path runs/short
    python evaluate_model.py --checkpoint models/default.safetensors --run_path runs/shipped

Reads data_path (generate_dataset.py) and run_path/best.safetensors (train_model.py), or --checkpoint. Writes into run_path: report.json,
report.md, report.html (the same for a browser, with tables that sort), predictions.csv, predictions_holdout.csv, and the plots
predicted_measured.png, error_by_program.png and regret_by_k.png.
The coverage of the intervals is also noted in run_path/best.safetensors, for rank_schedules.py. A report on another checkpoint that
lies in run_path is moved to run_path/previous-N.

With --interval other than the level that the model was trained with, its intervals are calibrated again on the validation split.
"""

from pathlib import Path

import numpy as np
import orjson
from pydantic import Field

import data_utils
import train_utils
from batches import Sequences, fingerprint, program_ids
from config import Config, UserError, load_config, make_folder, replace_file, run_script, set_aside
from evaluation import baselines, intervals, metrics
from evaluation.report import (
    REPORT_FILES,
    draw_error_by_program,
    draw_predicted_measured,
    draw_regret_by_k,
    leakage,
    part_report,
    report_blocks,
    seen_programs,
    worst_misses,
    write_markdown,
    write_page,
    write_predictions,
)
from features import INPUTS

LISTED_PROGRAMS = 20  # of the test programs, in report.md; report.html lists all of them


class EvaluateConfig(Config):
    checkpoint: str = Field("", description="model to evaluate; empty: best.safetensors in run_path")


def predict_all(config, model, device, train, val, others):
    """({model name: [predicted log-runtime of each of `others`]}, the LSTM first; [the LSTM's RowPredictions there]; {rival left out:
    why})."""
    own = [train_utils.predict_rows(model, rows, device) for rows in others]
    predicted = {"lstm": [found.log_runtime for found in own]}
    if any("all" in rows.inputs for rows in others):
        for inputs, name in (("without_counts", "lstm_without_lowered_counts"), ("counts_alone", "lstm_lowered_counts_alone")):
            predicted[name] = [train_utils.predict(model, rows, device, inputs) for rows in others]
    predicted["constant"] = baselines.constant(train, val, others)
    if config.split_by == "schedule":
        predicted["program_mean"] = baselines.program_mean(train, val, others)
    predicted["hist_gradient_boosting"] = baselines.hist_gradient_boosting(train, val, others)
    left_out = {}
    if why := baselines.why_no_halide_model(train, val, *others):
        left_out["adams2019"] = why
    else:
        predicted["adams2019"] = baselines.adams2019_as_shipped(train, val, others)
    if why := why or baselines.why_no_retraining(train):
        left_out["adams2019_retrained"] = why
    else:
        predicted["adams2019_retrained"] = baselines.adams2019_retrained(train, val, others)
    return predicted, own, left_out


def describe_checkpoint(path, trained, config, splits):
    """What is known of the model and these data, for the report: {"file", "data", "trained_here", "programs_seen"}.

    trained_here : whether it was trained on this training split. programs_seen : see seen_programs. Raises UserError for run_path's own
    model where the data are not its own, and for another model that was trained on programs it would be tested on.
    """
    here = trained["data"] == fingerprint(splits["train"], splits["val"])
    if not here and not config.checkpoint:
        raise UserError(f"{path}: was trained on other schedules than the training split of {config.data_path}; run train_model.py again")
    tested = {program for split in ("test", "holdout") for program in program_ids(splits[split])}
    seen = seen_programs(trained, here, tested)
    if seen and not here:
        raise UserError(
            f"{path}: was trained on {seen} of the {len(tested)} programs that {config.data_path} would test it on; evaluate it on data "
            "with the split it was trained with"
        )
    # The run's own checkpoint is named without its folder, so that the same run gives the same report anywhere.
    own = path.resolve() == (Path(config.run_path) / path.name).resolve()
    return {"file": path.name if own else str(path), "data": trained["data"], "trained_here": here, "programs_seen": seen}


def checkpoint_notes(checkpoint, trained, data_path):
    """Lines for report.md about a model that was trained or pre-trained elsewhere."""
    here, seen = checkpoint["trained_here"], checkpoint["programs_seen"]
    if here and seen == 0:
        return []
    if seen is None:
        known = "does not record its training programs: some of the test programs may be among them"
    else:
        known = f"was trained on {seen or 'none'} of the test and holdout programs"
    if here:
        return [f"The LSTM was fine-tuned from {trained['config']['init_from']}, which {known}."]
    return [
        f"The LSTM is {checkpoint['file']}, trained on other data than the training split of {data_path}, to which the rival models were "
        f"fitted. It {known}."
    ]


def calibrate_anew(config, path, trained, here, model, val, device):
    """The checkpoint's meta with intervals at the level `interval`: its own, or calibrated again on the validation rows.

    A model that was trained elsewhere keeps its own level, since it may have seen these rows. Raises UserError for --interval then.
    """
    if config.interval == trained["interval"]:
        return trained
    if not here:
        train_utils.agree_with_checkpoint(config, trained, path, "interval")
        return trained
    predicted = {inputs: train_utils.predict_rows(model, val, device, inputs) for inputs in INPUTS}
    return trained | {"interval": config.interval} | intervals.calibrations(predicted, val, config.interval)


def build_report(config, meta, trained, checkpoint, splits, predicted, own, left_out):
    """report.json as a dict; `own` : the LSTM's RowPredictions, {split: of its rows}."""
    rows = data_utils.read_rows(config.data_path)
    tables = {split: rows[rows.split == split].reset_index(drop=True) for split in ("test", "holdout")}
    test, holdout = splits["test"], splits["holdout"]
    log_runtime = test.log_runtime.astype(np.float64)
    report = {
        "checkpoint": checkpoint, "split_by": meta["split"]["split_by"], "counts": meta["counts"],
        **part_report(test, tables["test"], {name: p for name, (p, _) in predicted.items()}, own["test"], trained, config),
        "left_out": left_out | {
            name: f"{np.isnan(p).sum()} of the test rows have no features by Halide, which it needs; see the tables by origin"
            for name, (p, _) in predicted.items() if np.isnan(p).any()
        },
        "confidence": {
            name: metrics.bootstrap(test.program, test.instance, log_runtime, p, config.bootstrap_samples, 0.95, config.seed)
            for name, (p, _) in predicted.items() if not np.isnan(p).any()
        },
        "bootstrap_samples": metrics.resamplings(config.bootstrap_samples, len(test)),
        "noise_ceiling": metrics.noise_ceiling(rows[rows.collection.isin(tables["test"].collection)], log_runtime),
        "leakage": leakage(test, splits["train"], splits["val"]),
        "assumed_cores": None if data_utils.measuring_cores(meta) else baselines.machine_cores(splits["train"]),
        "worst_misses": worst_misses(test, tables["test"], predicted["lstm"][0]),
        "holdout": {},
    }  # fmt: skip
    for collection in sorted(set(tables["holdout"].collection)):
        at = np.flatnonzero(tables["holdout"].collection == collection)
        part = {name: p[at] for name, (_, p) in predicted.items()}
        table = tables["holdout"].iloc[at].reset_index(drop=True)
        report["holdout"][collection] = part_report(holdout.subset(at), table, part, own["holdout"].subset(at), trained, config)
    half_widths = intervals.half_widths(trained, holdout.inputs, own["holdout"].spread)
    whole_holdout = intervals.coverage(holdout, own["holdout"].log_runtime, half_widths, trained["interval"])
    report["interval"]["coverage_holdout"] = whole_holdout["coverage"]
    report["notes"] = report_notes(report, trained, test, config.data_path)
    return report


def coverage_of(report):
    """{part: its interval's coverage} of a report: of test, and of each collection of the holdout."""
    return {"test": report["interval"]} | {name: found["interval"] for name, found in report["holdout"].items()}


def report_notes(report, trained, test, data_path):
    """The lines of caution at the head of report.md."""
    lines = checkpoint_notes(report["checkpoint"], trained, data_path)
    if warning := intervals.calibration_warning(trained, test.inputs):
        lines.append(f"Note: {warning}.")
    lines += [f"Note: {line}." for line in intervals.coverage_warnings(coverage_of(report))]
    if report["assumed_cores"]:
        cores = report["assumed_cores"]
        lines.append(f"The data do not say how many cores the measuring machine has: Adams2019 gets {cores}, the number of this machine.")
    return lines


def write_report(run, report, splits, predicted, half_widths):
    """report.json, report.md, report.html, the predictions and the plots. An older report on another checkpoint is moved aside."""
    before = run / "report.json"
    of = report["checkpoint"]
    if before.exists() and (orjson.loads(before.read_bytes()).get("checkpoint") or of)["file"] != of["file"]:
        print(f"{run}: the report on another checkpoint is now in {set_aside(run, REPORT_FILES)}")
    replace_file(run / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    write_markdown(run / "report.md", report_blocks(report, LISTED_PROGRAMS))
    test, holdout = predicted["lstm"]
    write_predictions(run / "predictions.csv", splits["test"], test, half_widths["test"])
    write_predictions(run / "predictions_holdout.csv", splits["holdout"], holdout, half_widths["holdout"])
    parts = [("test", splits["test"], test)] + ([("holdout", splits["holdout"], holdout)] if len(holdout) else [])
    figures = {
        "predicted_measured": (draw_predicted_measured(parts), "Each schedule's predicted and measured runtime, of the LSTM."),
        "error_by_program": (draw_error_by_program(splits["test"], test), "The LSTM's errors on each test program, in log-runtime."),
        "regret_by_k": (
            draw_regret_by_k(splits["test"], {name: p for name, (p, _) in predicted.items() if not np.isnan(p).any()}),
            "How much slower than a program's fastest the best of the k schedules is that a model predicts to be the fastest.",
        ),
    }
    for name, (figure, _) in figures.items():
        figure.savefig(run / f"{name}.png", dpi=110)
    write_page(run / "report.html", report_blocks(report), figures)


def main():
    config = load_config(EvaluateConfig)
    device = train_utils.pick_device(config)
    meta = data_utils.read_meta(config.data_path)
    path = Path(config.checkpoint or Path(config.run_path) / "best.safetensors")
    model, trained = train_utils.load_model(path, device, config.precision)
    splits = {split: Sequences(config.data_path, meta, split) for split in data_utils.SPLITS}
    if len(splits["test"]) == 0:
        raise UserError(f"{config.data_path}: its test split is empty; measure more programs, or generate with a larger test_fraction")
    for split in ("train", "val"):
        if len(splits[split]) == 0:
            raise UserError(f"{config.data_path}: its {split} split is empty, which the rival models need; generate with other fractions")
    checkpoint = describe_checkpoint(path, trained, config, splits)
    config = train_utils.agree_with_checkpoint(train_utils.agree_with_data(config, meta), trained, path)
    calibrated = calibrate_anew(config, path, trained, checkpoint["trained_here"], model, splits["val"], device)
    run = make_folder(config.run_path, "run_path")
    tested = ("test", "holdout")
    predicted, own, left_out = predict_all(config, model, device, splits["train"], splits["val"], [splits[name] for name in tested])
    own = dict(zip(tested, own))
    half_widths = {name: intervals.half_widths(calibrated, splits[name].inputs, found.spread) for name, found in own.items()}
    report = build_report(config, meta, calibrated, checkpoint, splits, predicted, own, left_out)
    write_report(run, report, splits, predicted, half_widths)
    if not config.checkpoint and calibrated is trained:
        note_coverage(path, coverage_of(report))
    print((run / "report.md").read_text())


def note_coverage(path, found):
    """Note in a checkpoint what its intervals cover, so that it is known wherever the file goes."""
    tensors, meta = train_utils.read_checkpoint(path)
    train_utils.write_checkpoint(path, tensors, meta | {"coverage": found})


if __name__ == "__main__":
    run_script(main)
