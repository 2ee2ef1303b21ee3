"""Loads a registered model as anybody would who has MLflow and not this project: `python pyfunc_client.py URI < rows.json`."""

import json
import sys

import mlflow.pyfunc

model = mlflow.pyfunc.load_model(sys.argv[1])
import onnxruntime  # noqa: E402 - what the loader took

import ucotron_ray  # noqa: E402

given = json.load(sys.stdin)
answers = model.predict(given["rows"], params=given["params"])
print(
    json.dumps(
        {
            "answers": answers,
            "code": ucotron_ray.__file__,
            "heavy": sorted({"torch", "transformers", "ray"} & set(sys.modules)),
            "onnxruntime": onnxruntime.__version__,
        }
    )
)
