"""Configuration: camera.yaml and model.yaml as frozen typed objects, with all faults of a file in one error.

::

    path = resolve_config("demo")                   # a shipped configuration, or a path
    config = load_config(path, os.environ)          # AppConfig with absolute paths; ConfigError lists every fault
    folder = folder_of_model(config.model, shipped_models())
    spec = load_model_spec(folder)                  # ModelSpec; ModelError lists every fault
    check_classes(config, class_names, path)        # ConfigError for classes that the model does not have

No other package imports pydantic or PyYAML.
"""

from vision.config.analytics import Anchor, CameraAnalytics, LineConfig, Point, ZoneConfig
from vision.config.app import (
    AppConfig,
    CameraConfig,
    DetectConfig,
    HeadSpec,
    InputSpec,
    ModelSpec,
    NmsSpec,
    PublishConfig,
    StatusConfig,
    folder_of_model,
)
from vision.config.cascade import CascadeConfig, ClassifierSpec
from vision.config.class_names import check_classes
from vision.config.load import (
    load_classifier_spec,
    load_config,
    load_config_text,
    load_model_spec,
    resolve_paths,
)
from vision.config.rules import RuleConfig
from vision.config.schema import config_schema, model_schema
from vision.config.shipped import resolve_config, shipped_configs, shipped_models
from vision.config.snapshots import SnapshotConfig
from vision.config.wording import nearest

__all__ = [
    "Anchor",
    "AppConfig",
    "CameraAnalytics",
    "CameraConfig",
    "CascadeConfig",
    "ClassifierSpec",
    "DetectConfig",
    "HeadSpec",
    "InputSpec",
    "LineConfig",
    "ModelSpec",
    "NmsSpec",
    "Point",
    "PublishConfig",
    "RuleConfig",
    "SnapshotConfig",
    "StatusConfig",
    "ZoneConfig",
    "check_classes",
    "config_schema",
    "folder_of_model",
    "load_classifier_spec",
    "load_config",
    "load_config_text",
    "load_model_spec",
    "model_schema",
    "nearest",
    "resolve_config",
    "resolve_paths",
    "shipped_configs",
    "shipped_models",
]
