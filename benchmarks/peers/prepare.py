"""Fit the model in a peer's own environment and store it as that peer wants it.

It takes what to store (`pickle` or `mlflow`) and where to. It gives that file or folder.
"""

import sys
from pathlib import Path

import cloudpickle
from model import fit, load


def pickled(where: Path) -> None:
    where.write_bytes(cloudpickle.dumps(fit(load())))


def mlflow(where: Path) -> None:
    # Without a signature, which would only add a check of every frame.
    from mlflow.sklearn import save_model

    save_model(
        fit(load()),
        where,
        serialization_format="cloudpickle",
        pyfunc_predict_fn="predict_proba",
        pip_requirements=["scikit-learn", "cloudpickle"],
    )


if __name__ == "__main__":
    {"pickle": pickled, "mlflow": mlflow}[sys.argv[1]](Path(sys.argv[2]))
