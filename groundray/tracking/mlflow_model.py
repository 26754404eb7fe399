"""An exported model as an MLflow model: one folder that MLflow's loaders and groundray open.

    MLmodel                       flavours, signature, size, metadata (run id, stages)
    groundray.json, stages/, language-*/
                                  the export (model/export.py) with its seals, at the root: `--checkpoint` and
                                  `run.start_from` take this folder
    model.sentence_transformer/   the last stage's language stream: the export's `language/` under the name that
                                  MLflow's flavour `sentence_transformers` reads
    components/tokenizer/         its tokenizer, where MLflow's flavour `transformers` reads it
    requirements.txt, conda.yaml, python_env.yaml, input_example.json, serving_input_example.json

The flavours add no weights: `transformers` reads `model.sentence_transformer/` too, and `python_function` the export
(image_search/python_function.py). Models that earlier versions logged are exports without these additions, with
`language/`; groundray reads both.
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from groundray.data.tokenization import whole_words
from groundray.model import export
from groundray.model.timm_trunk import TIMM
from groundray.storage.folder import SEALS
from groundray.versions import version_of

LOADER = "groundray.image_search.python_function"
STREAM = "model.sentence_transformer"  # fixed in MLflow
TOKENIZER = "components/tokenizer"  # also fixed
EXAMPLE = "a red heart"
PACKAGES = ("groundray", "mlflow", "sentence-transformers", "torch", "transformers")
ENTRY = "MLmodel"
REQUIREMENTS, CONDA, PYTHON = "requirements.txt", "conda.yaml", "python_env.yaml"
INPUT, SERVING = "input_example.json", "serving_input_example.json"
ADDED = (ENTRY, REQUIREMENTS, CONDA, PYTHON, INPUT, SERVING, TOKENIZER.partition("/")[0])  # beside the export
NO_TOKENIZER = (SEALS, export.CARD, "modules.json")


def write(folder: Path, run_id: str, model_id: str, artifacts: str) -> None:
    """Make the exported model in a folder an MLflow model, in place.

    Nothing is downloaded, installed or started.

    Args:
        folder: a copy of an export.
        run_id: the MLflow run that trained it.
        model_id: its logged model.
        artifacts: URI of the logged model's artifacts.

    Raises:
        FileNotFoundError, ValueError: the folder holds no exported model that can be read.
    """
    from mlflow.models import Model

    about = export.about(folder)
    export.rename_language(folder, STREAM)
    _copy_tokenizer(folder)
    _write_requirements(folder, about.settings["model"]["trunk"]["name"])
    stages = [stage.name for stage in about.stages]
    model = Model(
        artifact_path=artifacts,
        run_id=run_id,
        model_uuid=model_id,
        model_id=model_id,
        signature=_signature(folder),
        saved_input_example_info=_write_example(folder),
        metadata={"groundray_run": about.settings["run"]["name"], "mlflow_run_id": run_id, "stages": stages},
    )
    model.add_flavor(
        "python_function",
        loader_module=LOADER,
        python_version=platform.python_version(),
        env={"conda": CONDA, "virtualenv": PYTHON},
    )
    source = {"source_model_name": about.settings["run"]["name"], "pipeline_model_type": "AutoModel", "code": None}
    if (folder / STREAM / "modules.json").exists():  # not in exports of the first versions
        model.add_flavor(
            "sentence_transformers", sentence_transformers_version=version_of("sentence-transformers"), **source
        )
    model.add_flavor(
        "transformers",
        transformers_version=version_of("transformers"),
        task="feature-extraction",
        instance_type="FeatureExtractionPipeline",
        model_binary=STREAM,
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        **source,
    )
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.save(str(folder / ENTRY))


def copy_export(folder: Path, copy: Path) -> None:
    """Copy the export in an MLflow model to a new folder, as it was before `write`.

    Raises:
        FileNotFoundError, ValueError: the folder holds no exported model that can be read.
    """
    shutil.copytree(folder, copy, ignore=lambda place, _: ADDED if Path(place) == folder else ())
    export.rename_language(copy, export.LANGUAGE, STREAM)


def _copy_tokenizer(folder: Path) -> None:
    """Copy the tokenizer: all of the language stream's files but the weights and what is of the folder itself."""
    (folder / TOKENIZER).mkdir(parents=True)
    for file in (folder / STREAM).iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in NO_TOKENIZER:
            shutil.copy(file, folder / TOKENIZER / file.name)


def _write_requirements(folder: Path, trunk: str) -> None:
    """Write what the model needs, with the versions that are installed here. Of an extra that is not, any version."""
    packages = (*PACKAGES, "timm") if trunk.startswith(TIMM) else PACKAGES
    versions = {name: version_of(name).partition("+")[0] for name in packages}
    pins = [f"{name}=={version}" if version[0].isdigit() else name for name, version in versions.items()]
    (folder / REQUIREMENTS).write_text("\n".join(pins) + "\n", encoding="utf-8")
    python = platform.python_version()
    environment: dict[str, Any] = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": pins}],
    }
    _write_yaml(folder / CONDA, environment)
    _write_yaml(
        folder / PYTHON,
        {"python": python, "build_dependencies": ["pip"], "dependencies": [f"-r {REQUIREMENTS}"]},
    )


def _write_yaml(file: Path, content: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _signature(folder: Path) -> Any:
    """Return the signature: what `python_function` takes and returns."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    pooling = folder / STREAM / "1_Pooling" / "config.json"
    width = json.loads(pooling.read_bytes())["word_embedding_dimension"] if pooling.exists() else -1
    columns = {"text": "string", "image": "binary", "alpha": "double"}
    parameters = {"images": ("string", None), "index": ("string", None), "k": ("long", 10)}
    return ModelSignature(
        Schema([ColSpec(kind, name, required=False) for name, kind in columns.items()]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, width))]),
        ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in parameters.items()]),
    )


def _write_example(folder: Path) -> dict[str, str]:
    """Write an example of an input, a text of words that the model knows, and return its entry in MLmodel."""
    words = whole_words(Tokenizer.from_file(str(folder / STREAM / "tokenizer.json")))
    text = EXAMPLE if set(EXAMPLE.split()) <= {"a", *words} or not words else words[0]
    split = {"columns": ["text"], "data": [[text]]}
    for name, content in {INPUT: split, SERVING: {"dataframe_split": split}}.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return {"artifact_path": INPUT, "type": "dataframe", "pandas_orient": "split", "serving_input_path": SERVING}
