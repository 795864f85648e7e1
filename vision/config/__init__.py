"""Configuration: camera.yaml and model.yaml as immutable typed objects. One error lists all faults of a file.

::

    path = resolve_config("demo")                   # a shipped configuration, or a path
    config = load_config(path, os.environ)          # AppConfig with absolute paths; ConfigError lists every fault
    folder = folder_of_model(config.model, shipped_models())
    spec = load_model_spec(folder)                  # ModelSpec; ModelError lists every fault
    check_classes(config, class_names, path)        # ConfigError for classes that the model lacks

No other package imports pydantic or PyYAML.
"""

from vision.config.analytics import CameraAnalytics as CameraAnalytics
from vision.config.analytics import LineConfig as LineConfig
from vision.config.analytics import Point as Point
from vision.config.analytics import ZoneConfig as ZoneConfig
from vision.config.app import AppConfig as AppConfig
from vision.config.app import CameraConfig as CameraConfig
from vision.config.app import CascadeConfig as CascadeConfig
from vision.config.app import DetectConfig as DetectConfig
from vision.config.app import PublishConfig as PublishConfig
from vision.config.app import StatusConfig as StatusConfig
from vision.config.app import TrackConfig as TrackConfig
from vision.config.load import check_classes as check_classes
from vision.config.load import load_classifier_spec as load_classifier_spec
from vision.config.load import load_config as load_config
from vision.config.load import load_config_text as load_config_text
from vision.config.load import load_model_spec as load_model_spec
from vision.config.load import load_model_spec_text as load_model_spec_text
from vision.config.load import resolve_config as resolve_config
from vision.config.load import shipped_configs as shipped_configs
from vision.config.load import shipped_models as shipped_models
from vision.config.model_file import checked_model_file as checked_model_file
from vision.config.model_file import folder_of_model as folder_of_model
from vision.config.model_spec import AnySpec as AnySpec
from vision.config.model_spec import ClassifierSpec as ClassifierSpec
from vision.config.model_spec import HeadSpec as HeadSpec
from vision.config.model_spec import InputSpec as InputSpec
from vision.config.model_spec import ModelSpec as ModelSpec
from vision.config.model_spec import NmsSpec as NmsSpec
from vision.config.model_spec import PluginSpec as PluginSpec
from vision.config.model_spec import ProfileSpec as ProfileSpec
from vision.config.rules import RuleConfig as RuleConfig
from vision.config.schema import config_schema as config_schema
from vision.config.schema import model_schema as model_schema
from vision.config.wording import nearest as nearest
