"""Which settings are tried: floats, whole numbers, choices, groups of the configuration too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from siamese_sat.errors import InputError
from siamese_sat.hparams.grammar import written

if TYPE_CHECKING:
    import optuna

Range = Mapping[str, Any] | Sequence[Any]
KNOWN = {"low", "high", "log", "step"}


def distributions(space: Mapping[str, Range]) -> dict[str, optuna.distributions.BaseDistribution]:
    """What Optuna draws each setting from.

    Args:
        space: setting -> ``{low, high, log, step}``, both ends included, whole numbers where both ends are; or a list
            of choices, which may be numbers, words, lists, null, or the options of a group such as ``loss``.

    Raises:
        InputError: a range that cannot be.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, values in space.items():
        where = f"hparams_search.space: {name}"
        if isinstance(values, Mapping):
            low, high, step = (cast("Any", values.get(k)) for k in ("low", "high", "step"))
            numbers = [low, high] if step is None else [low, high, step]
            if set(values) - KNOWN or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
                raise InputError(f"{where} must be a list of choices or numbers low and high, with log or step.")
            kind = IntDistribution if all(isinstance(v, int) for v in numbers) else FloatDistribution
            stepped = {} if step is None else {"step": step}
            try:
                found[name] = kind(low, high, log=bool(values.get("log")), **stepped)
            except ValueError as error:
                raise InputError(f"{where}: {error}") from error
        elif isinstance(values, Sequence) and not isinstance(values, str) and len(values):
            found[name] = CategoricalDistribution([written(v) for v in values])
        else:
            raise InputError(f"{where} must be a list of choices or numbers low and high, with log or step.")
    if not found:
        raise InputError("hparams_search.space is empty; name settings to try, as in conf/hparams_search/optuna.yaml.")
    return found


def each_choice(space: Mapping[str, optuna.distributions.BaseDistribution]) -> list[list[str]]:
    """Settings as overrides, in which together every choice, and both ends of every range, stand at least once.

    One for each choice, not for each combination: the first of all, then each further one among the others' first.
    """
    options = {
        name: list(
            getattr(one, "choices", None) or dict.fromkeys(written(getattr(one, end)) for end in ("low", "high"))
        )
        for name, one in space.items()
    }
    first = {name: of[0] for name, of in options.items()}
    others = [{**first, name: option} for name, of in options.items() for option in of[1:]]
    return [[f"{name}={value}" for name, value in chosen.items()] for chosen in (first, *others)]


def suggest(trial: optuna.Trial, space: Mapping[str, optuna.distributions.BaseDistribution]) -> list[str]:
    """The trial's settings as overrides of the command line."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = []
    for name, range_ in space.items():
        match range_:
            case CategoricalDistribution():
                value = trial.suggest_categorical(name, range_.choices)
            case IntDistribution():
                value = written(trial.suggest_int(name, range_.low, range_.high, step=range_.step, log=range_.log))
            case FloatDistribution():
                value = written(trial.suggest_float(name, range_.low, range_.high, step=range_.step, log=range_.log))
        found.append(f"{name}={value}")
    return found
