"""Runs in NannyML's own environment: gives the data that it ships, and its verdicts on them.

python peer_nannyml.py OUT      writes OUT/<set>.parquet (reference first) and OUT/nannyml.json
"""

import json
import sys
from pathlib import Path

import nannyml
import pandas as pd
from nannyml.datasets import (
    load_modified_california_housing_dataset,
    load_synthetic_car_loan_dataset,
    load_us_census_ma_employment_data,
)

CHUNK = 5_000
SETS = {
    "car_loan": (load_synthetic_car_loan_dataset, "repaid", "y_pred_proba", "y_pred"),
    "census": (load_us_census_ma_employment_data, "employed", "predicted_probability", "prediction"),
}
# No verdict is asked on it: our own intervals are held against it, which nothing was chosen on. NannyML's synthetic binary
# classification (work_home) would tell nothing new: its labels and probabilities are car_loan's, row by row.
HELD_OUT = {
    "housing": (load_modified_california_housing_dataset, "clf_target", "y_pred_proba", "y_pred"),
}
NOT_FEATURES = {"id", "timestamp", "year"}
METRICS = ("accuracy", "roc_auc", "precision", "recall")


def main() -> None:
    out = Path(sys.argv[1])
    verdicts = {"version": nannyml.__version__}
    for name, (load, target, probability, prediction) in (SETS | HELD_OUT).items():
        reference, analysis, labels = load()
        joined = analysis.merge(labels, on="id")
        everything = pd.concat([reference.assign(is_reference=True), joined.assign(is_reference=False)])
        everything = everything.rename(columns={target: "label", probability: "probability", prediction: "prediction"})
        for column in everything.columns.drop("is_reference"):
            if everything[column].dtype.name in {"category", "object", "str", "bool"}:
                everything[column] = everything[column].astype(str)
        everything.to_parquet(out / f"{name}.parquet", index=False)
        if name in HELD_OUT:
            continue
        features = [c for c in analysis.columns if c not in NOT_FEATURES | {probability, prediction}]
        verdicts[name] = {
            "drift": drift(reference, analysis, features),
            "quality": quality(reference, joined, target, probability, prediction),
        }
    (out / "nannyml.json").write_text(json.dumps(verdicts))


def drift(reference: pd.DataFrame, analysis: pd.DataFrame, features: list[str]) -> dict[str, object]:
    calculator = nannyml.UnivariateDriftCalculator(
        column_names=features,
        chunk_size=CHUNK,
        continuous_methods=["jensen_shannon", "kolmogorov_smirnov", "wasserstein"],
        categorical_methods=["jensen_shannon", "chi2"],
    )
    calculator.fit(reference)
    frame = calculator.calculate(analysis).to_df()
    found: dict[str, object] = {}
    for feature in features:
        methods = {method for column, method, _ in frame.columns if column == feature}
        found[feature] = {
            method: {
                "period": frame["chunk", "chunk", "period"].tolist(),
                "value": frame[feature, method, "value"].astype(float).tolist(),
                "alert": frame[feature, method, "alert"].fillna(False).astype(bool).tolist(),
            }
            for method in sorted(methods)
        }
    return found


def quality(
    reference: pd.DataFrame, analysis: pd.DataFrame, target: str, probability: str, prediction: str
) -> dict[str, object]:
    columns = {"y_pred_proba": probability, "y_pred": prediction, "y_true": target}
    common = {"problem_type": "classification_binary", "metrics": list(METRICS)}
    found: dict[str, object] = {}
    for size in (1_000, CHUNK):
        estimator = nannyml.CBPE(**columns, **common, chunk_size=size).fit(reference)
        frame = estimator.estimate(analysis).filter(period="analysis").to_df()
        found[str(size)] = {
            metric: {
                key: frame[metric, key].astype(float).tolist()
                for key in (
                    "value",
                    "realized",
                    "sampling_error",
                    "lower_confidence_boundary",
                    "upper_confidence_boundary",
                )
                if (metric, key) in frame.columns
            }
            for metric in METRICS
        }
    return found


if __name__ == "__main__":
    main()
