"""Classes that a recipe chooses by `class_path`.

A config field of type `Component` names a class and some of its options:

    encoder_adapter:
      class_path: finetune.adapters.MsaAdapter
      init_args: {ratio: 0.25}

Importing such a class often imports PyTorch, which takes seconds. So its options are read from its
source code while a command line is parsed, and it is imported when it is built.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import field
from types import GenericAlias
from typing import Any, TypeVar, get_origin

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from data_prep.common.errors import UserError
from data_prep.common.messages import describe, is_of, nearest, one_line, rejected_value
from data_prep.common.signatures import (
    Parameter,
    is_package,
    names_in,
    public_path,
    read_parameters,
    subclasses_in,
)
from data_prep.common.yaml_text import as_list

Built = TypeVar("Built")

SIMPLE: dict[str, Any] = {
    name: kind
    for plain in (int, float, bool, str)
    for name, kind in (
        (plain.__name__, plain),
        (f"{plain.__name__} | None", plain | None),
        (f"list[{plain.__name__}]", GenericAlias(list, (plain,))),
        (f"tuple[{plain.__name__}, ...]", GenericAlias(tuple, (plain, ...))),
    )
} | {
    "dict[str, float]": GenericAlias(dict, (str, float)),
    "dict[str, Component]": GenericAlias(dict, (str, object)),
}
"""Types by their source text, of values that are checked before the class is imported."""


class Component:
    """A class and the options it is built with.

    Args:
        class_path: Dotted path of the class, or its bare name if it is in the base's package.
        init_args: Options by name; those left out have the defaults of the class.
        option: The option that chose it, for error messages.
    """

    def __init__(
        self,
        class_path: str,
        init_args: Mapping[str, Any] | None = None,
        option: str = "",
    ) -> None:
        self.class_path, self.init_args, self.option = class_path, dict(init_args or {}), option

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Component) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.class_path)

    def __repr__(self) -> str:
        return self.class_path

    def to_dict(self) -> dict[str, Any]:
        """As it is written in YAML."""
        return {"class_path": self.class_path, "init_args": self.init_args}

    @classmethod
    def from_value(cls, value: Any) -> "Component":
        """A component from its YAML form: a class path, or a mapping with `class_path`, and with
        options under `init_args` or directly."""
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
            direct = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
            return cls(value["class_path"], {**(value.get("init_args") or {}), **direct})
        raise ValueError("expected a class path, or a mapping with class_path and init_args")

    def checked(self, base: str, option: str) -> "Component":
        """The same component with every option that has a plain default filled in.

        Nothing is imported. A class whose source cannot be found is returned as it is; `build` then
        says what is wrong.

        Args:
            base: Dotted path of the class that it must derive from.
            option: The option that chose it.

        Raises:
            UserError: No class of that name, or an option that the class does not have.
        """
        class_path = self.class_path
        if "." not in class_path:
            known = known_classes(base)
            if class_path not in known:
                hint = nearest(class_path, known) or f"; there are {', '.join(known)}"
                hint = hint if known else "; a class from elsewhere needs its dotted path"
                raise UserError(f"{option}: there is no class {class_path!r}{hint}")
            class_path = known[class_path]
        parameters = read_parameters(class_path)
        if parameters is None:
            module, _, name = class_path.rpartition(".")
            if hint := nearest(name, names_in(module)):
                raise UserError(f"{option}: there is no class {name!r} in {module}{hint}")
            return Component(class_path, self.init_args, option)
        class_path = public_path(class_path)
        values = _checked_values(self.init_args, parameters, option)
        return Component(class_path, values, option)

    def build(self, base: type[Built], *arguments: Any) -> Built:
        """Import the class and make an instance.

        Args:
            base: Class that it must derive from.
            arguments: Its first positional arguments, given by the program.

        Raises:
            UserError: The class cannot be imported or is of another kind, an option is unknown or
                of another type, or the class refuses a value.
        """
        where = self.option or self.class_path
        made = self.load(base)
        parser = ArgumentParser(prog=where, exit_on_error=False, allow_abbrev=False)
        parser.add_class_arguments(made, skip={len(arguments)} if arguments else None)
        try:
            values = parser.instantiate(parser.parse_object(dict(self.init_args)))
        except UserError:
            raise
        except Exception as error:  # jsonargparse reports a rejected value in several ways
            raise UserError(rejected_value(str(error), self.init_args, prefix=where)) from None
        try:
            return made(*arguments, **vars(values))
        except (ValueError, AssertionError) as error:
            raise UserError(f"{where}: {one_line(error)}") from None

    def load(self, base: type[Built]) -> type[Built]:
        """Import the class.

        Raises:
            UserError: It cannot be imported, or does not derive from `base`.
        """
        where = self.option or "class_path"
        module, _, name = self.class_path.rpartition(".")
        try:
            loaded = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{where}: {self.class_path} cannot be imported ({one_line(error)})"
            ) from None
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise UserError(
                f"{where}: {self.class_path} is not a {base.__module__}.{base.__qualname__}"
            )
        return loaded


register_type(Component, Component.to_dict, Component.from_value, fail_already_registered=False)


def component(base: str, default: str | None = None, required: bool = False) -> Any:
    """A config field that holds a `Component`, or a list or dict of them.

    Args:
        base: Dotted path of the class that it must derive from. Bare class names are looked up in
            the package that this class is in.
        default: Class used when none is named; None for a field without a class.
        required: The field has no default.
    """
    metadata = {"base": base}
    if required:
        return field(metadata=metadata)
    if default is None:
        return field(default=None, metadata=metadata)
    return field(default_factory=lambda: Component(default).checked(base, ""), metadata=metadata)


def components(base: str, defaults: Iterable[str] = ()) -> Any:
    """A config field that holds a list of components."""
    chosen = tuple(defaults)
    return field(
        default_factory=lambda: [Component(path).checked(base, "") for path in chosen],
        metadata={"base": base},
    )


def known_classes(base: str) -> dict[str, str]:
    """Class path by bare name of every class in the base's package that derives from it."""
    module, _, name = base.rpartition(".")
    package = module if is_package(module) else module.rpartition(".")[0] or module
    return {name: public_path(path) for name, path in subclasses_in(package, name).items()}


def _checked_values(
    given: Mapping[str, Any], parameters: Mapping[str, Parameter], option: str
) -> dict[str, Any]:
    """Given values and plain defaults, in the order of the class.

    Raises:
        UserError: A name that is not an option of the class, or a value of another simple type.
    """
    possible = [name for name, parameter in parameters.items() if not parameter.required]
    for name in given:
        if name not in possible:
            hint = nearest(name, possible) or f"; there are {', '.join(possible)}"
            raise UserError(f"{option}.{name}: there is no such option{hint}")
    values: dict[str, Any] = {}
    for name in possible:
        parameter, where = parameters[name], f"{option}.{name}"
        value = given.get(name)
        if parameter.nested and isinstance(value, Mapping | None):
            values[name] = _checked_values(value or {}, parameter.nested, where)
        elif name in given:
            kind = SIMPLE.get(parameter.annotation)
            if get_origin(kind) in (list, tuple):
                value = as_list(value, where)
            if kind is not None and not is_of(value, kind):
                raise UserError(f"{where}: {value!r} is not {describe(kind)}")
            if parameter.nested:
                raise UserError(f"{where}: {value!r} is not a mapping of options")
            values[name] = value
        elif parameter.is_plain:
            default = parameter.default
            values[name] = list(default) if isinstance(default, tuple) else default  # as in YAML
    return values
