"""Register ALBEF with transformers' Auto classes and pipelines as soon as transformers looks for it.

Registering imports all models, which takes seconds, so `import albef_hf` only calls `register_when_needed`. The
mappings of transformers then call `register` before they look up a key of ALBEF. Once it is registered, transformers
loads ALBEF models with the installed package, without executing remote code.
"""

import importlib.abc
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CONFIG_MODULE = f"{__package__}.configuration_albef"
REMOVED_TASK = "visual-question-answering"  # since 5.19, transformers refuses the name of a task that it removed

_lock = threading.RLock()  # other threads that look for ALBEF wait until it is registered
_is_registered = False


def register() -> None:
    """Register configurations, models, the processor and pipelines, unless this was done before."""
    global _is_registered
    with _lock:
        if not _is_registered:
            _is_registered = True  # before registering, which looks up keys itself
            _register_all()


def _register_all() -> None:
    import transformers
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_albef import AUTO_MODELS, PIPELINES, AlbefConfig, AlbefTextConfig, AlbefVisionConfig
    from .encoders_albef import AlbefMultimodalModel, AlbefTextModel, AlbefTwoImageEncoder, AlbefVisionModel
    from .modeling_albef import MODEL_CLASSES
    from .pipeline_albef import PIPELINE_CLASSES
    from .processing_albef import AlbefProcessor

    for config in (AlbefConfig, AlbefTextConfig, AlbefVisionConfig):
        transformers.AutoConfig.register(config.model_type, config)
    for auto_class, names in AUTO_MODELS.items():
        getattr(transformers, auto_class).register(AlbefConfig, tuple(MODEL_CLASSES[name] for name in names))
    transformers.AutoModel.register(AlbefVisionConfig, AlbefVisionModel)
    transformers.AutoModel.register(AlbefTextConfig, (AlbefTextModel, AlbefMultimodalModel, AlbefTwoImageEncoder))
    transformers.AutoProcessor.register(AlbefConfig, AlbefProcessor)
    for task, (pipeline, auto_class, _) in PIPELINES.items():
        PIPELINE_REGISTRY.register_pipeline(
            task,
            PIPELINE_CLASSES[pipeline],
            pt_model=getattr(transformers, auto_class),
            type="multimodal",
        )


class _RegisteringDict(dict):
    """A dictionary that registers ALBEF before it looks up a key that may be ALBEF's."""

    def __contains__(self, key: Hashable) -> bool:
        if self.may_be_ours(key):
            register()
        return super().__contains__(key)

    def may_be_ours(self, key: Hashable) -> bool:
        """Return True for ALBEF's model types and for its configuration classes."""
        if isinstance(key, str):
            return key.startswith("albef")
        return getattr(key, "__module__", None) == CONFIG_MODULE


class _TaskDict(_RegisteringDict):
    """The tasks of `pipeline`; ALBEF's are known only after registering."""

    def may_be_ours(self, key: Hashable) -> bool:
        """Return True for all tasks."""
        return True


def _watch_mappings(module: ModuleType) -> None:
    """Let the Auto mappings of a module register ALBEF when they need it."""
    for mapping in vars(module).values():
        content = getattr(mapping, "_extra_content", None)
        if type(content) is dict:
            mapping._extra_content = _RegisteringDict(content)


def _watch_pipelines(module: ModuleType) -> None:
    """Let the registry of pipelines register ALBEF when it needs it."""
    getattr(module, "REMOVED_TASKS", {}).pop(REMOVED_TASK, None)
    registry = module.PIPELINE_REGISTRY
    registry.supported_tasks = _TaskDict(registry.supported_tasks)


_WATCHERS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _watch_mappings,
    "transformers.models.auto.modeling_auto": _watch_mappings,
    "transformers.models.auto.processing_auto": _watch_mappings,
    "transformers.pipelines": _watch_pipelines,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Call the watcher of a module after the module is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that other finders find, with a loader that calls the watcher."""
        watch = _WATCHERS.get(fullname)
        if watch is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _call_after_loading(spec.loader, watch)
        return spec


def _call_after_loading(loader: Any, watch: Callable[[ModuleType], None]) -> None:
    exec_module = loader.exec_module

    def exec_and_watch(module: ModuleType) -> None:
        exec_module(module)
        watch(module)

    loader.exec_module = exec_and_watch


def register_when_needed() -> None:
    """Register ALBEF when transformers looks for it, whether transformers is imported already or later."""
    sys.meta_path.insert(0, _Finder())
    for name, watch in _WATCHERS.items():
        if name in sys.modules:
            watch(sys.modules[name])
