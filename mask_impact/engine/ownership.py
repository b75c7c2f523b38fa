"""One owner at a time for each model: a thread that has a block open, and every other thread untouched by it.

A model has a lock, which the same thread may take again. A second use by mask-impact waits for the first. Hooks of a block are
for the calls of its own thread, while no other block of that thread lies inside; a forward of yours in another thread goes
through them as if they were not there. Knows no attention and no measuring.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from types import MappingProxyType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

from mask_impact.errors import ModelError

HARMLESS = ("accelerate.", "transformers.")  # whose hooks change nothing
MOST_NAMED = 3  # hooked modules in a message


class AnyDecoder(Protocol):
    """A decoder, whether its layers' order is known or not. key: what stands for it, whatever wraps it; layers: each with a name
    and its module; configs: what says which attention backend it has; attentions: the modules one of which calls the attention
    of a layer."""

    @property
    def key(self) -> nn.Module: ...
    @property
    def layers(self) -> Sequence[Any]: ...
    @property
    def configs(self) -> Sequence[Any]: ...
    @property
    def attentions(self) -> Iterable[nn.Module]: ...


class _Owner:
    """Of one model. innermost: the block that was opened last by the thread that has the lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.innermost: Block | None = None


_owners: WeakKeyDictionary[nn.Module, _Owner] = WeakKeyDictionary()
_register = threading.Lock()


def _owner_of(decoder: AnyDecoder) -> _Owner:
    """By its key: whatever wraps the decoder, it is the same model."""
    key = decoder.key
    with _register:
        if key not in _owners:
            _owners[key] = _Owner()
        return _owners[key]


class Block:
    """What one thread does with a model while nobody else of us has it. Its hooks are told of this thread's calls alone, and are
    removed by their handles, which are context managers."""

    def __init__(self, owner: _Owner) -> None:
        self._owner, self._thread = owner, get_ident()

    def before(
        self, module: nn.Module, hook: Callable[[nn.Module, tuple, dict], tuple | None], *, prepend: bool = False
    ) -> RemovableHandle:
        """hook(module, args, kwargs) before each call of a module; returns None, or (args, kwargs) to go on with."""
        owner, thread = self._owner, self._thread

        # Another thread may find the hook without the note that it takes keywords: the two are not written at once.
        def mine(module, args, kwargs=None):
            return hook(module, args, kwargs) if get_ident() == thread and owner.innermost is self else None

        mine.of_mask_impact = True
        return module.register_forward_pre_hook(mine, with_kwargs=True, prepend=prepend)

    def after(
        self, module: nn.Module, hook: Callable[[nn.Module, tuple, Any], Any], *, prepend: bool = False
    ) -> RemovableHandle:
        """hook(module, args, output) after each call of a module; returns None, or another output."""
        owner, thread = self._owner, self._thread

        def mine(module, args, output):
            return hook(module, args, output) if get_ident() == thread and owner.innermost is self else None

        mine.of_mask_impact = True
        return module.register_forward_hook(mine, prepend=prepend)


@contextmanager
def owned(decoder: AnyDecoder) -> Iterator[None]:
    """A block in which no other thread of us uses the model; waits until none does."""
    with _owner_of(decoder).lock:
        yield


@contextmanager
def opened(decoder: AnyDecoder) -> Iterator[Block]:
    """A new block, after waiting as in `owned`. A block of the same thread around it sees nothing of what happens inside."""
    owner = _owner_of(decoder)
    with owner.lock:
        around, owner.innermost = owner.innermost, Block(owner)
        try:
            yield owner.innermost
        finally:
            owner.innermost = around


@contextmanager
def joined(decoder: AnyDecoder) -> Iterator[Block]:
    """The innermost block that this thread has open on the model; a new one where there is none."""
    owner = _owner_of(decoder)
    with owner.lock:
        if owner.innermost is not None:
            yield owner.innermost
            return
        with opened(decoder) as block:
            yield block


def refuse_hooks(decoder: AnyDecoder, also: Mapping[str, nn.Module] = MappingProxyType({})) -> None:
    """ModelError where somebody else's forward hooks lie on the decoder's layers, or on what else our rows go through, by name:
    they would go through the hooks too."""
    modules = {layer.name: layer.module for layer in decoder.layers} | dict(also)
    hooked = [f"{place}.{name}".rstrip(".") for place, parent in modules.items() for name in hooked_in(parent)]
    if hooked:
        more = f" and {len(hooked) - MOST_NAMED} more" if len(hooked) > MOST_NAMED else ""
        raise ModelError(
            f"forward hooks are on {', '.join(hooked[:MOST_NAMED])}{more}: what they change is not measured; remove them first"
        )


def hooked_in(parent: nn.Module) -> list[str]:
    """The modules within one, itself included, that have somebody else's forward hooks, by name."""
    return [name for name, module in parent.named_modules() if _is_hooked(module)]


def is_changed(parent: nn.Module) -> bool:
    """Whether somebody else's forward hooks or forward lie on a module or on one within it. As `hooked_in` and `is_patched` tell,
    in one walk, since each block asks it of all layers."""
    left = [parent]
    while left:
        module = left.pop()
        if is_patched(module) or _is_hooked(module):
            return True
        left += [part for part in module._modules.values() if part is not None]
    return False


def is_patched(module: nn.Module) -> bool:
    """Whether somebody else's function stands in the place of a module's forward; accelerate's does not count."""
    forward = vars(module).get("forward")
    while hasattr(forward, "of_mask_impact"):
        forward = forward.of_mask_impact
    own = forward is None or getattr(forward, "__func__", None) is type(module).forward
    return not own and "_hf_hook" not in vars(module)


def _is_hooked(module: nn.Module) -> bool:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(map(_is_foreign, hooks))


def _is_foreign(hook: Callable) -> bool:
    """Not one of ours, of accelerate, which moves weights and states to where they are needed, or of transformers, which keeps
    attention weights for whoever asks."""
    return not hasattr(hook, "of_mask_impact") and not str(getattr(hook, "__module__", "")).startswith(HARMLESS)
