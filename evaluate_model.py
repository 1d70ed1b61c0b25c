"""Report how well a trained model predicts: on test programs it has never seen, and on held-out collections, beside rivals.

    python evaluate_model.py
    python evaluate_model.py --run_path runs/short

Reads data_path (generate_dataset.py) and run_path/best.safetensors (train_model.py). Writes into run_path: report.json, report.md,
predictions.csv, predictions_holdout.csv, and the plots predicted_measured.png, error_by_program.png and regret_by_k.png.
"""

from pathlib import Path

import matplotlib
import numpy as np
import orjson

from config import UserError, load_config, make_folder, run_script

matplotlib.use("Agg")
import data_utils
import train_utils
from evaluation import baselines, intervals, metrics
from evaluation.report import (
    leakage,
    names_of,
    plot_error_by_program,
    plot_predicted_measured,
    plot_regret_by_k,
    program_lines,
    worst_misses,
    write_markdown,
    write_predictions,
)


def predict_all(config, model, device, train, val, others):
    """({model name: [predicted log-runtime of each of `others`]}, the LSTM first; {rival left out: why})."""
    predicted = {"lstm": [train_utils.predict(model, rows, device) for rows in others]}
    if any(rows.has_lowered_counts.any() for rows in others):
        predicted["lstm_without_lowered_counts"] = [train_utils.predict(model, rows, device, lowered=False) for rows in others]
    predicted["constant"] = baselines.constant(train, val, others)
    if config["split_by"] == "schedule":
        predicted["program_mean"] = baselines.program_mean(train, val, others)
    predicted["hist_gradient_boosting"] = baselines.hist_gradient_boosting(train, val, others)
    left_out = {}
    if why := baselines.why_no_halide_model(train, val, others):
        left_out["adams2019"] = why
    else:
        predicted["adams2019"] = baselines.adams2019_as_shipped(train, val, others)
    if why := why or baselines.why_no_retraining(train):
        left_out["adams2019_retrained"] = why
    else:
        predicted["adams2019_retrained"] = baselines.adams2019_retrained(train, val, others)
    return predicted, left_out


def main():
    config = load_config()
    device = train_utils.pick_device(config)
    meta = data_utils.read_meta(config.data_path)
    checkpoint = Path(config.run_path) / "best.safetensors"
    model, trained = train_utils.load_model(checkpoint, device, config.precision)
    train, val, test, holdout = (train_utils.Sequences(config.data_path, meta, split) for split in ("train", "val", "test", "holdout"))
    if len(test) == 0:
        raise UserError(f"{config.data_path}: its test split is empty; measure more programs, or generate with a larger test_fraction")
    # The rivals are fitted on the very rows the model has seen, and nothing it has seen is among the test rows.
    if trained["data"] != train_utils.fingerprint(train, val):
        raise UserError(
            f"{checkpoint}: was trained on other schedules than the training split of {config.data_path}; run train_model.py again"
        )
    run = make_folder(config.run_path, "run_path")
    predicted, left_out = predict_all(meta["split"], model, device, train, val, [test, holdout])
    half_widths = {
        split: np.array([intervals.errors_of(trained, c)["log_half_width"] for c in rows.has_lowered_counts])
        for split, rows in (("test", test), ("holdout", holdout))
    }

    def coverage(rows, log_predicted, half_width):
        return float(np.mean(np.abs(log_predicted - rows.log_runtime) <= half_width)) if len(rows) else None

    log_runtime = test.log_runtime.astype(np.float64)
    rows = data_utils.read_rows(config.data_path)
    test_rows, holdout_rows = (rows[rows.split == split] for split in ("test", "holdout"))
    report = {
        "split_by": meta["split"]["split_by"],
        "counts": meta["counts"],
        "models": {name: metrics.all_metrics(test.instance, log_runtime, p) for name, (p, _) in predicted.items()},
        "left_out": left_out,
        "confidence": {
            name: metrics.bootstrap(test.program, test.instance, log_runtime, p, config.bootstrap_samples, 0.95, config.seed)
            for name, (p, _) in predicted.items()
        },
        "noise_ceiling": metrics.noise_ceiling(rows[rows.collection.isin(test_rows.collection)], log_runtime),
        "interval": {
            "level": trained["interval"], "log_half_width": float(half_widths["test"].mean()),
            "coverage": coverage(test, predicted["lstm"][0], half_widths["test"]), "coverage_holdout": coverage(holdout, predicted["lstm"][1], half_widths["holdout"]),
        },
        "few_shot": intervals.few_shot_errors(test.instance, log_runtime, predicted["lstm"][0], intervals.errors_of(trained, test.has_lowered_counts.all())["offset_variance"], config.seed),
        "leakage": leakage(test, train, val),
        "worst_misses": worst_misses(test, test_rows, predicted["lstm"][0]),
        "programs": program_lines(test, names_of(test_rows), predicted["lstm"][0]),
        "holdout": {},
    }  # fmt: skip
    for collection in sorted(set(holdout_rows.collection)):
        at = np.flatnonzero(holdout_rows.collection == collection)
        part = holdout.subset(at)
        report["holdout"][collection] = {
            "models": {name: metrics.all_metrics(part.instance, part.log_runtime.astype(np.float64), p[at]) for name, (_, p) in predicted.items()},
            "programs": program_lines(part, names_of(holdout_rows.iloc[at]), predicted["lstm"][1][at]),
        }  # fmt: skip

    (run / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    write_markdown(run / "report.md", report)
    write_predictions(run / "predictions.csv", test, predicted["lstm"][0], half_widths["test"])
    write_predictions(run / "predictions_holdout.csv", holdout, predicted["lstm"][1], half_widths["holdout"])
    parts = [("test", test, predicted["lstm"][0])] + ([("holdout", holdout, predicted["lstm"][1])] if len(holdout) else [])
    plot_predicted_measured(run / "predicted_measured.png", parts)
    plot_error_by_program(run / "error_by_program.png", test, predicted["lstm"][0])
    plot_regret_by_k(run / "regret_by_k.png", test, {name: p for name, (p, _) in predicted.items()})
    print((run / "report.md").read_text())


if __name__ == "__main__":
    run_script(main)
